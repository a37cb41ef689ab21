"""What the server is asked and answers, as JSON."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import models_json_schema

MAX_ROWS: Final = 1000  # of one request: each costs memory before the limit of images is looked at


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Picture(_Model):
    """An image file."""

    image: str = Field(
        description="the file's bytes in base64, or a `data:` URL of them, of any format in docs/inputs.md"
    )
    name: str = Field("", max_length=1000, description="comes back with the answer; is used for nothing else")


class Pictures(_Model):
    """A request for scores."""

    images: list[Picture] = Field(
        min_length=1, max_length=MAX_ROWS, description="over the limit of images, those at the end get an error each"
    )


class Row(_Model):
    """One picture's score with its contract, or the reason why it has none; what is missing is null."""

    name: str = Field(description="as given")
    score: float | None = Field(description="quality in [low, high], higher is better")
    raw: float | None = Field(description="the regressor's output, on the scale of its training labels")
    low: float | None = Field(description="lowest possible score")
    high: float | None = Field(description="highest possible score")
    direction: str | None = Field(description="which end is good")
    model: str | None = Field(description="version in the registry")
    labels: str | None = Field(description="what the model learned from: human, or weak")
    error: str | None = Field(description="why there is no score, and the remedy; null if there is one")
    interval_low: float | None = Field(description="where a judgement of the picture lies nine times out of ten: from")
    interval_high: float | None = Field(description="to; both null for a model that was fitted without")
    distance: float | None = Field(description="how unlike the training pictures; above 1 is farther than 99 % of them")
    warning: str | None = Field(description="in words that distance is above 1; empty if it is not")


class Predictions(_Model):
    """A row for each picture, in order."""

    predictions: list[Row]


class Likely(_Model):
    """A distortion that the picture may have."""

    distortion: str = Field(description="one of the 25, or pristine")
    level: int = Field(ge=0, le=5, description="1 to 5; 0 for pristine")
    probability: float = Field(ge=0, le=1, description="those of all distortions sum to 1")


class Explained(Row):
    """A row, where the picture's quality is lost, and what it looks like; null if it has no score."""

    heat: list[list[float]] | None = Field(description="score of each patch of 32 x 32 pixels, row by row, 0 to 100")
    overlay: str | None = Field(description="PNG in base64: the heat map over the picture, red is low, blue is high")
    suspects: list[Likely] | None = Field(description="likeliest first; null for a model that cannot name distortions")


class Refused(_Model):
    """Why a whole request has no answer."""

    error: str = Field(description="one line")


class Health(_Model):
    """That the server answers, and by which model."""

    status: str
    model: str = Field(description="version in the registry; empty for a model that is not registered")
    labels: str = Field(description="human or weak")
    version: str = Field(description="of this program")
    waiting: int = Field(description="pictures that are computed or wait their turn")


def describe_fault(error: ValidationError) -> str:
    """The first fault of a request alone, and where; what was sent is not sent back."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(["body", *(ascii(str(part))[1:-1][:100] for part in fault["loc"])])  # a key may be anything
    return f"{where}: {fault['msg']}; see /openapi.json, and send application/json"


def describe_requests() -> dict[str, Any]:
    """Schemas of what the server is asked, for `components` of OpenAPI; it reads them in another process."""
    forms = [(Picture, "validation"), (Pictures, "validation")]
    _, definitions = models_json_schema(forms, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    return dict(definitions["$defs"])


def describe_body(form: type[BaseModel]) -> dict[str, Any]:
    """What an endpoint takes, for OpenAPI."""
    schema = {"$ref": f"#/components/schemas/{form.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
