"""The walk: data -> validation -> distortions -> encoder -> features -> regressor -> evaluation -> gate -> registry."""

import json
from typing import Any

from kfp import dsl

from components import IMAGE
from components.accept_data import accept_data
from components.close_run import close_run
from components.decide_promotion import decide_promotion
from components.evaluate_model import evaluate_model
from components.extract_features import extract_features
from components.fetch_data import fetch_data
from components.fit_regressor import fit_regressor
from components.gather_distortions import gather_distortions
from components.gather_features import gather_features
from components.keep_champion import keep_champion
from components.pin_data import pin_data
from components.pin_encoder import pin_encoder
from components.pretrain_encoder import pretrain_encoder
from components.register_model import register_model
from components.synthesize_distortions import synthesize_distortions
from components.validate_data import validate_data
from components.write_report import write_report
from pipelines.cluster import trainjob
from pipelines.cluster.resources import equipped, pretraining


def build(shards: int = 1, gpus: int = 1, nodes: int = 1, to: str = "") -> dsl.base_component.BaseComponent:
    """The training pipeline, in a shape that the compiled document has for good.

    Args:
        shards: over how many tasks synthesis and feature extraction fan out.
        gpus: that the encoder is pretrained on, in one pod, by a process each.
        nodes: machines with that many GPUs each; more than one are a TrainJob.
        to: `s3://` prefix for what such a job reads and writes.
    """
    spread = {} if gpus == 1 else {"processes": gpus}
    if nodes > 1:
        spread = {"job": json.dumps(trainjob.manifest(IMAGE, nodes=nodes, gpus=gpus)), "to": to}

    def distorted_set(dataset: Any, after: Any, **settings: Any) -> Any:
        if shards == 1:
            return equipped(synthesize_distortions(dataset=dataset, **settings)).after(after).outputs["distorted"]
        with dsl.ParallelFor(list(range(shards)), name="parts of the distortions") as part:
            task = equipped(synthesize_distortions(dataset=dataset, part=part, parts=shards, **settings)).after(after)
        parts = dsl.Collected(task.outputs["distorted"])
        return equipped(gather_distortions(dataset=dataset, parts=parts, **settings)).outputs["distorted"]

    def feature_set(**inputs: Any) -> Any:
        if shards == 1:
            return equipped(extract_features(**inputs)).outputs["features"]
        with dsl.ParallelFor(list(range(shards)), name="parts of the features") as part:
            task = equipped(extract_features(part=part, parts=shards, **inputs))
        return equipped(gather_features(parts=dsl.Collected(task.outputs["features"]))).outputs["features"]

    @dsl.pipeline(name="contrique-training", display_name="CONTRIQUE training")
    def training(
        data: str,
        encoder: str = "",
        profile: str = "demo",
        revision: str = "",
        pristine: list = [],  # noqa: B006 (KFP copies defaults into the compiled document)
        authentic: list = [],  # noqa: B006
        overrides: dict = {},  # noqa: B006
        seed: int = 0,
    ) -> None:
        """Train, judge, gate and register a no-reference image-quality model.

        Args:
            data: Rated pictures: an s3:// prefix, git URL or folder with labels.csv, data.dvc or a picture set.
            encoder: Start: bundled, a version or s3://...; used as is unless overrides set pretrain.steps. Empty: none.
            profile: Where options start from: demo (laptop), gpu (a quarter of an hour on one) or paper (as published).
            revision: Git revision of data.dvc, if data is a git URL; empty for the newest.
            pristine: Undistorted photographs without labels, as JSON, such as ["s3://bucket/photographs"].
            authentic: Camera photographs without labels, taken as they are, as JSON, such as ["s3://bucket/uploads"].
            overrides: Options that differ from the profile, as JSON by name, such as {"pretrain.steps" : 100}.
            seed: Of every random draw; the same seed on the same data gives the same weights on a CPU.
        """
        settings = {"profile": profile, "overrides": overrides}
        sources = {"data": data, "revision": revision, "pristine": pristine, "authentic": authentic}
        with dsl.ExitHandler(equipped(close_run(**settings)), name="training"):
            encoder_pin = equipped(pin_encoder(encoder=encoder, **settings))
            data_pin = equipped(pin_data(**sources)).after(encoder_pin)  # a mistyped encoder costs no data's time
            dataset = equipped(fetch_data(pin=data_pin.output, **sources)).outputs["dataset"]
            validated = equipped(validate_data(dataset=dataset, start=encoder, **settings))
            findings = validated.outputs["findings"]
            accepted = equipped(accept_data(findings=findings))
            distorted = distorted_set(dataset, accepted, seed=seed, **settings)
            pictures = {"dataset": dataset, "distorted": distorted}
            origin = {"start": encoder, "pin": encoder_pin.output}
            pretrained = equipped(
                pretrain_encoder(seed=seed, **origin, **pictures, **settings, **spread), pretraining(gpus, nodes)
            )
            weights = pretrained.outputs["encoder"]
            features = feature_set(encoder=weights, **pictures, **settings)
            regressor = equipped(fit_regressor(features=features, encoder=weights, **settings)).outputs["regressor"]
            trained = {"encoder": weights, "regressor": regressor}
            judged = equipped(evaluate_model(features=features, seed=seed, **trained, **pictures, **settings))
            evaluation = judged.outputs["result"]
            decided = equipped(decide_promotion(evaluation=evaluation, **settings))
            verdict = decided.outputs["verdict"]
            # not the picture sets themselves: whoever takes them downloads terabytes
            small = {"extract": judged.outputs["extract"], "verdict": verdict}
            model = {"evaluation": evaluation, **trained, **small}
            # If AND Else on a component's one returned value: KFP's local runner skips other forms, and calls it
            # success.
            with dsl.If(decided.outputs["Output"] == "promote", name="promote"):
                registered = equipped(register_model(**model, **settings))
            with dsl.Else(name="hold"):
                champion = equipped(keep_champion(**small, **settings))
            equipped(
                write_report(
                    findings=findings,
                    outcome=dsl.OneOf(registered.outputs["Output"], champion.outputs["Output"]),
                    **model,
                    **settings,
                )
            )

    return training


training = build()
