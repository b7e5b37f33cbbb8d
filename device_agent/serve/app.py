"""What a worker answers for its one deployment."""

from collections.abc import Callable, Mapping
from typing import Any

from device_agent.serve import codec, predict
from device_agent.serve.http import (
    Head,
    HttpError,
    PassOn,
    Request,
    Response,
    Route,
    Serve,
    error_response,
    json_response,
)
from device_agent.serve.model import BusyError, EngineHungError, ServedModel
from device_agent.serve.routes import Target, target_of
from edgekit.errors import EdgeKitError
from edgekit.manifest import TensorSpec
from edgekit.tensors import V2_DTYPES
from edgekit.transforms import JSON, postprocess, prepare

# JSON spells a number in up to some 25 characters; an image or other raw input may be larger than its tensor.
_JSON_BYTES_PER_BYTE = 8
_SMALLEST_BODY_LIMIT = 1 << 20
_RAW_BODY_LIMIT = 16 << 20


class WorkerApp:
    """Routes and handlers. `give_back` takes requests that are not this worker's; `on_hung` ends the process."""

    def __init__(
        self,
        deployment: str,
        deployments: tuple[str, ...],
        digest: str,
        model: ServedModel,
        *,
        give_back: Callable[[int, bytes], None],
        on_hung: Callable[[], None],
    ) -> None:
        self._deployment = deployment
        self._deployments = deployments
        self._digest = digest
        self._model = model
        self._give_back = give_back
        self._on_hung = on_hung
        dense = model.input_bytes * _JSON_BYTES_PER_BYTE + 64 * 1024
        self._infer_limit = max(dense, _SMALLEST_BODY_LIMIT)
        self._predict_limit = max(
            dense, _RAW_BODY_LIMIT if model.manifest.preprocess else _SMALLEST_BODY_LIMIT
        )

    def route(self, head: Head) -> Route:
        target = target_of(head.path, self._deployments)
        if not target.is_workers or target.deployment != self._deployment:
            return PassOn(self._give_back)
        if head.method != target.method and not (head.method == "HEAD" and target.method == "GET"):
            raise HttpError(405, f"{head.path} takes {target.method}")
        return self._serve(target)

    def _serve(self, target: Target) -> Route:
        if target.kind == "infer":
            return Serve(self._guarded(self._infer), self._infer_limit)
        if target.kind == "predict":
            return Serve(self._guarded(self._predict), self._predict_limit)
        return Serve(self._ready if target.kind == "model-ready" else self._metadata)

    def _guarded(self, handle: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            try:
                response: Response = await handle(request)
            except BusyError as error:
                return error_response(503, str(error), error.code, retry_after="1")
            except EngineHungError:
                self._on_hung()
                raise
            except EdgeKitError:
                raise
            except Exception:
                self._model.counters.failed()
                raise
            return response

        return answer

    async def _ready(self, _request: Request) -> Response:
        return json_response(200, {"name": self._deployment, "ready": True})

    async def _metadata(self, _request: Request) -> Response:
        manifest = self._model.manifest
        return json_response(
            200,
            {
                "name": self._deployment,
                "versions": [manifest.version],
                "platform": manifest.engine.name,
                "inputs": [_described(spec) for spec in manifest.admitted],
                "outputs": [_described(spec) for spec in manifest.outputs],
                "parameters": {
                    "model": manifest.name,
                    "profile": manifest.profile,
                    "digest": self._digest,
                    "recipe": manifest.recipe,
                    **({"buckets": manifest.buckets.sizes} if manifest.buckets else {}),
                },
            },
        )

    async def _infer(self, request: Request) -> Response:
        def work() -> Response:
            parsed, tensors = codec.read_request(request)
            codec.check_outputs(parsed, self._model.manifest)
            outputs = self._model.run(tensors, codec.sequence_of(parsed.parameters))
            return codec.write_answer(
                parsed, outputs, model=self._deployment, version=self._model.manifest.version
            )

        return await self._model.do(work)

    async def _predict(self, request: Request) -> Response:
        manifest = self._model.manifest
        states = {pair.output for pair in manifest.state}

        def work() -> dict[str, Any]:
            raw, sequence = predict.read_body(request, manifest)
            outputs = self._model.run(prepare(manifest.admitted, manifest.preprocess, raw), sequence)
            told = {name: value for name, value in outputs.items() if name not in states}
            answers = postprocess(manifest.postprocess, told)
            return {
                "deployment": self._deployment,
                "model": manifest.name,
                "version": manifest.version,
                "outputs": answers,
                **_headline(answers),
            }

        return json_response(200, await self._model.do(work))


def _headline(answers: Mapping[str, JSON]) -> dict[str, JSON]:
    """`label` and `score` of the first answer where post-processing ranked or judged it."""
    first = next(iter(answers.values()), None)
    best = first[0] if isinstance(first, list) and first else first
    if not isinstance(best, dict):
        return {}
    label = best.get("label", str(best["index"]) if "index" in best else None)
    score = best.get("score", best.get("value"))
    return {key: value for key, value in (("label", label), ("score", score)) if value is not None}


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": V2_DTYPES.get(spec.dtype, spec.dtype.upper()),
        "shape": [-1 if dim is None else dim for dim in spec.shape],
    }
