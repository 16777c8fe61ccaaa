"""`ray_app`: an exported network as an application of Ray Serve, each stage with a queue of its own."""

import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from keras_exitens import _checks as checks
from keras_exitens import runtime
from keras_exitens._types import Path

__all__ = ["ray_app"]

ROUTER, DRIFT = "router", "drift"
_OURS = ("max_batch_size", "batch_wait_timeout_s", "threads")  # options that are not Ray's


def ray_app(
    export_dir: Path,
    *,
    max_batch_size: int = 32,
    batch_wait_timeout_s: float = 0.005,
    stage_options: Mapping[str, Mapping[str, Any]] | None = None,
    thresholds: float | Sequence[float] | None = None,
    drift: Path | None = None,
    chained: bool = True,
) -> Any:
    """An application of Ray Serve that serves an export, a deployment a stage.

    A batch shrinks at each exit: alone, the later stages would run on few rows. Here each stage has a queue,
    so that rows of *different* requests that go on share its next batch, and each can be scaled by its load.
    What goes on from a batch is one call to the next stage, and is answered together.

    ```python
    early.export("serving", format="onnx")
    handle = serve.run(kx.serving.ray_app("serving"))
    handle.predict.remote(images).result()  # {"logits", "exit", "score"}
    ```

    By HTTP: `POST /predict` with `{"images": [...]}` as JSON, or with the bytes of a `.npy` file; the answer
    is JSON, or a `.npz` file to a request with `accept: application/x-npz`. One image or several; those of
    the wrong shape or dtype or with NaN are answered 422; 503 where a queue is over its limit (Ray's
    `max_queued_requests`) or a stage is being restarted. `"thresholds"` in the JSON replaces those of the
    export for one request. `GET /health`, `GET /drift`.

    Args:
        export_dir: a folder that `EarlyExit.export` wrote with `format="onnx"` or `"litert"`; every node has
            to see it under this path. The replicas need neither Keras nor this library.
        max_batch_size: int, the most rows that a stage runs together.
        batch_wait_timeout_s: float, how many seconds a stage waits for more rows.
        stage_options: dict from the name of an exit (the stage that ends there), or `"router"`, or
            `"drift"`, to a dict of options: those of Ray's `Deployment.options` (`num_replicas`,
            `autoscaling_config`, `ray_actor_options`, `max_queued_requests`, …), and for a stage
            `max_batch_size`, `batch_wait_timeout_s` and `threads` (1 by default: more of them get in the way
            of other replicas). Each replica asks Ray for 0.1 of a processor, so that a small machine holds
            all of them: set `ray_actor_options` on a cluster.
        thresholds: as `Runtime.predict` takes them, in place of those of the export. New ones in a running
            app, at once: `handle.broadcast("set_thresholds", thresholds).results()`; for replicas that start
            later too: run the app again with others. Neither drops a request.
        drift: a file that `DriftMonitor.save` wrote; its figures are exported as metrics, and by
            `GET /drift`.
        chained: bool, `False` runs all stages in one deployment: less is sent, batches shrink.

    Returns:
        A `ray.serve.Application`. Names of the deployments: the exits, `"router"`, `"drift"`.

    Raises:
        ValueError: no such export, or an option for a stage that there is not.
        ImportError: Ray Serve is not installed.
    """
    checks.optional_import("ray.serve", "serve")
    from ray import serve

    deployment: Any = serve.deployment

    folder = str(pathlib.Path(export_dir).absolute())
    network = runtime.load(folder, 1)  # whatever is wrong with it is told here, and not in a replica's log
    ends = [network.exit_names[stage.index] for stage in network.stages]
    parts = [[k] for k in range(len(ends))] if chained else [list(range(len(ends)))]
    names = [ends[part[-1]] for part in parts]
    options = _options(stage_options, names)
    common = {
        "max_batch_size": checks.whole("max_batch_size", max_batch_size, low=1),
        "batch_wait_timeout_s": checks.number("batch_wait_timeout_s", batch_wait_timeout_s, low=0),
        "threads": 1,
    }
    config = {} if thresholds is None else {"thresholds": network.thresholds(thresholds).tolist()}
    classes = _by_value()

    few = {"ray_actor_options": {"num_cpus": 0.1}}
    following, smallest = None, None
    for part, name in reversed(list(zip(parts, names, strict=True))):
        ours = {key: options[name].pop(key, value) for key, value in common.items()}
        # What waits has to wait in the replica, where batches are made. One that is full Ray asks again after
        # pauses that grow to a second.
        defaults = {"max_ongoing_requests": 32 * ours["max_batch_size"], **few}
        stage = deployment(classes.Stage).options(name=name, **{**defaults, **options[name]})
        following = stage.bind(folder, part, following, **ours)
        smallest = min(smallest or ours["max_batch_size"], ours["max_batch_size"])
    watch = None
    if drift is not None:
        runtime.Monitor.load(drift)
        watcher = deployment(classes.Drift).options(name=DRIFT, **{**few, **options[DRIFT]})
        watch = watcher.bind(folder, str(pathlib.Path(drift).absolute()))
    many = {"max_ongoing_requests": 1000, "user_config": config, **few}
    router = deployment(classes.Router).options(name=ROUTER, **{**many, **options[ROUTER]})
    return router.bind(folder, following, watch, smallest)


def _options(
    given: Mapping[str, Mapping[str, Any]] | None, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """A dict of options for each deployment."""
    known = [*names, ROUTER, DRIFT]
    for name in given or {}:
        checks.one_of("stage_options", name, known)
    found = {name: dict((given or {}).get(name, {})) for name in known}
    for name in (ROUTER, DRIFT):
        for key in _OURS:
            if key in found[name]:
                raise checks.error(
                    f"`stage_options[{name!r}]` has an option of a stage.",
                    expected="options of Ray's Deployment.options",
                    received=repr(key),
                    fix=f"give it to a stage: {', '.join(names)}",
                )
    return found


def _by_value() -> Any:
    """The module of the replicas, which Ray then sends along: a replica need not have this library."""
    from ray import cloudpickle

    module = importlib.import_module("keras_exitens.serving.replicas")
    cloudpickle.register_pickle_by_value(module)
    return module
