"""The stages of the pipelines: one thin Kubeflow component per file, each calling one function of `contrique`.

A component's source travels inside the compiled pipeline, so its body imports what it needs itself. The image holds
`contrique` and all that the stages import: nothing is installed when a task starts.
"""

import functools
import os

from kfp import dsl

# Compiled into the pipeline. Name it by digest (contrique@sha256:...) wherever the cluster caches: a tag may move.
IMAGE = os.environ.get("CONTRIQUE_IMAGE", "contrique-python:0.1.0")

component = functools.partial(dsl.component, base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
