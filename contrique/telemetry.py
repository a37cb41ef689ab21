"""Usage reports of libraries: none is sent of what is done with somebody's photographs.

DVC, Great Expectations, MLflow, ONNX Runtime and OpenVINO each report to their makers unless they are forbidden to.
A user who wants a report sent sets the library's own variable; OpenVINO has none.
"""

import os
import sys
from typing import Final

SWITCHES: Final = {
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
}


def disable_telemetry() -> None:
    """Forbid the reports, before any of the libraries is imported.

    By variables, which the processes that this one starts inherit; OpenVINO's in this process alone.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    # OpenVINO reports each import, and reports nothing where this package is not installed.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
