"""What runs in the processes of Ray Serve: the stages, the router before them, and who watches for drift.

Ray gets these classes by value: a replica needs Ray, NumPy and LiteRT or ONNX Runtime, and takes the rest
from the exported folder, which holds the package `exitens_runtime`. Nothing here imports this library,
therefore.
"""

import asyncio
import collections
import importlib
import io
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import ray
from fastapi import FastAPI, Request, Response
from ray import serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.util import metrics

http = FastAPI(title="keras-exitens")
# What a call raises whose replica died or cannot be reached: to ask another one changes nothing but the time.
GONE = (ray.exceptions.RayActorError, DeploymentUnavailableError)
BUSY = (BackPressureError,)
ATTEMPTS, PAUSE = 4, 0.25  # seconds, doubled each time
NPY, NPZ = "application/x-npy", "application/x-npz"
Arrays: TypeAlias = dict[str, np.ndarray]


def runtime_of(folder: str) -> Any:
    """The package in an export."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("exitens_runtime")


async def asked(handle: Any, *arguments: Any) -> Any:
    """The answer of a deployment; one whose replica died meanwhile is asked again: a stage has no memory."""
    for attempt in range(ATTEMPTS):
        try:
            return await handle.remote(*arguments)
        except GONE:
            if attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(PAUSE * 2**attempt)


class Waiting:
    """A request in a stage: rows, of which some may be in a batch already, others answered.

    Attributes:
        thresholds: float32 `(exits - 1, rows)`, its own for each row; they stay the same on its way.
        taken: int, how many rows have gone into batches.
        answered: future of the answers.
    """

    def __init__(self, rows: Any, thresholds: np.ndarray, answers: Any) -> None:
        self.rows, self.taken = rows, 0
        self.size = len(rows.finite)
        self.thresholds = np.broadcast_to(
            thresholds.reshape(len(thresholds), -1), (len(thresholds), self.size)
        )
        self._answers = answers
        self.answered = asyncio.get_running_loop().create_future()

    def put(self, row: int, found: Arrays, which: int) -> None:
        """The answer to a row, which stands in `found` at `which`."""
        self._answers.put(row, found, which)
        if not self._answers.left and not self.answered.done():  # whoever asked may have gone
            self.answered.set_result(self._answers.arrays)

    def fail(self, problem: Exception) -> None:
        """There will be no answer."""
        if not self.answered.done():
            self.answered.set_exception(problem)


Places: TypeAlias = list[tuple[Waiting, int]]  # for each row of a batch, whose it is, and which one there


class Stage:
    """One stage of the network, or several in one process; asks the next deployment for rows that go on.

    Args:
        folder: str, the export.
        numbers: the stages that run here, one after the other, 0 for the first.
        following: handle of the next deployment, `None` after the last.
        max_batch_size: int, rows.
        batch_wait_timeout_s: float.
        threads: int or `None`.
    """

    def __init__(
        self,
        folder: str,
        numbers: Sequence[int],
        following: Any,
        max_batch_size: int,
        batch_wait_timeout_s: float,
        threads: int | None,
    ) -> None:
        self._network = runtime_of(folder).load(folder, threads, numbers)
        self._numbers, self._next = numbers, following
        self._counts = {"batches": 0, "rows": 0, "seconds": 0.0}
        self._max_batch_size, self._wait = max_batch_size, batch_wait_timeout_s
        self._waiting: collections.deque[Waiting] = collections.deque()
        self._running: asyncio.Future[None] | None = None
        self._on_the_way: set[asyncio.Future[None]] = set()
        name = self._network.exit_names[self._network.stages[numbers[-1]].index]
        self._rows = metrics.Histogram(
            "exitens_batch_rows", "Rows that a stage ran together", [1, 2, 4, 8, 16, 32, 64, 128], ("stage",)
        )
        self._rows.set_default_tags({"stage": name})

    async def __call__(self, rows: Any, thresholds: np.ndarray) -> Arrays:
        """Takes rows as far as they have to go.

        Args:
            rows: `exitens_runtime.Rows`, at least one.
            thresholds: float32 `(exits - 1,)`, or `(exits - 1, rows)`.

        Returns:
            A dict of arrays, as `Runtime.predict` gives it.
        """
        request = Waiting(rows, thresholds, self._network.answers(len(rows.finite)))
        self._waiting.append(request)
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._run_all())
        return await request.answered

    async def _run_all(self) -> None:
        """One batch after another, until nothing waits.

        A batch takes what came while the one before it ran. (Ray's `serve.batch` closes a batch when the
        first request in it has waited for its time, though the one before still runs: under load, batches
        of 16 rows came down to two.)
        """
        while self._waiting:
            if sum(request.size - request.taken for request in self._waiting) < self._max_batch_size:
                await asyncio.sleep(self._wait)
            places, groups, limits = self._next_batch()
            began = time.perf_counter()
            try:
                found, going_on, rest, thresholds = await asyncio.to_thread(self._run, groups, limits)
            except Exception as problem:
                self._fail(places, problem)
                continue
            self._counts["batches"] += 1
            self._counts["rows"] += len(places)
            self._counts["seconds"] += time.perf_counter() - began
            self._rows.observe(len(places))
            for row in np.flatnonzero(~going_on).tolist():
                request, position = places[row]
                request.put(position, found, row)
            if going_on.any():
                onward = [places[row] for row in np.flatnonzero(going_on)]
                task = asyncio.ensure_future(self._go_on(onward, rest, thresholds))
                self._on_the_way.add(task)
                task.add_done_callback(self._on_the_way.discard)

    def _next_batch(self) -> tuple[Places, list[Any], list[np.ndarray]]:
        """Takes rows from those that wait, the oldest first; a large request may be cut.

        Returns:
            Whose they are; the rows, and their thresholds, in parts.
        """
        places: Places = []
        groups: list[Any] = []
        limits: list[np.ndarray] = []
        while self._waiting and len(places) < self._max_batch_size:
            request = self._waiting[0]
            if groups and not groups[0].fits(request.rows):
                break  # images of another size have a batch of their own
            end = min(request.size, request.taken + self._max_batch_size - len(places))
            here = slice(request.taken, end)
            groups.append(request.rows.take(here))
            limits.append(request.thresholds[:, here])
            places += [(request, position) for position in range(request.taken, end)]
            request.taken = end
            if end == request.size:
                self._waiting.popleft()
        return places, groups, limits

    def _run(self, groups: list[Any], limits: list[np.ndarray]) -> tuple[Arrays, np.ndarray, Any, np.ndarray]:
        """What `Runtime.advance` gives, of all stages that run here; and thresholds of rows that go on."""
        rows, thresholds = type(groups[0]).joined(groups), np.concatenate(limits, axis=1)
        answers = self._network.answers(len(rows.finite))
        here = np.arange(answers.left)
        for number in self._numbers:
            found, going_on, rows = self._network.advance(number, rows, thresholds[:, here])
            answers.put(here[~going_on], found, ~going_on)
            here = here[going_on]
            if not len(here):
                break
        mask = np.zeros(thresholds.shape[1], bool)
        mask[here] = True
        return answers.arrays, mask, rows, thresholds[:, mask]

    async def _go_on(self, places: Places, rows: Any, thresholds: np.ndarray) -> None:
        """Hands on what is left of a batch, in one call: a call costs milliseconds, whatever is in it."""
        try:
            found = await asked(self._next, rows, thresholds)
        except Exception as problem:
            self._fail(places, problem)
            return
        for row, (request, position) in enumerate(places):
            request.put(position, found, row)

    def _fail(self, places: Places, problem: Exception) -> None:
        for request, _ in places:
            request.fail(problem)
            if request in self._waiting:  # the rest of it need not run
                self._waiting.remove(request)

    async def stats(self) -> dict[str, float]:
        """Dict of `batches`, `rows` and `seconds` spent in them since the replica began."""
        return dict(self._counts)


class Drift:
    """Watches what the router answers. One replica: it has to see all."""

    def __init__(self, folder: str, reference: str) -> None:
        runtime = runtime_of(folder)
        self._monitor = runtime.Monitor.load(reference)
        self._evidence = metrics.Gauge("exitens_drift_evidence", "Evidence that the images have changed")
        self._alarm = metrics.Gauge("exitens_drift_alarm", "1 once the evidence has reached its limit")

    async def update(self, outputs: Arrays) -> None:
        """Takes the exits and scores of a request."""
        found = self._monitor.update(outputs)
        self._evidence.set(found.evidence)
        self._alarm.set(float(found.alarm))

    async def report(self) -> dict[str, Any]:
        """`exitens_runtime.DriftReport` as a dict."""
        found = self._monitor.report()
        return {**vars(found), "alarm": found.alarm}


def read(body: bytes, kind: str, dtype: str) -> tuple[np.ndarray, Any]:
    """`(images, thresholds or None)` of the body of a request.

    Args:
        body: bytes.
        kind: str, the content type.
        dtype: that of the network's images. JSON has numbers alone: whole ones that fit become it.

    Raises:
        ValueError: it is neither JSON of that form nor a `.npy` file.
    """
    try:
        if body[:6] == b"\x93NUMPY" or NPY in kind:
            return np.load(io.BytesIO(body), allow_pickle=False), None
        found = json.loads(body)
        images, thresholds = np.array(found["images"]), found.get("thresholds")
        if images.dtype.kind not in "fiu":
            raise ValueError(f"images of {images.dtype}")
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, OSError) as cause:
        raise ValueError(
            'The body is not understood.\n  Expected: JSON {"images": [...]}, or the bytes of a .npy file\n'
            f"  Received: {len(body)} bytes, {type(cause).__name__}: {cause}\n"
            "  Fix: numpy.save(file, images), with content-type application/x-npy"
        ) from None
    if images.size and images.dtype.kind in "iu" and np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        if limits.min <= images.min() and images.max() <= limits.max:
            images = images.astype(dtype)
    return images, thresholds


def told(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An answer that says what was wrong."""
    return Response(json.dumps({"error": message}), status, headers, "application/json")


# Last in the file: Ray copies the class when it is decorated, with those functions that there are by then.
@serve.ingress(http)
class Router:
    """Checks images, hands them to the first stage, and answers, by HTTP or by a handle.

    Args:
        folder: str, the export.
        first: handle of the first stage.
        drift: handle of `Drift`, or `None`.
        max_batch_size: int, the most rows that a stage takes; larger requests are cut.
    """

    def __init__(self, folder: str, first: Any, drift: Any, max_batch_size: int) -> None:
        self._network = runtime_of(folder).load(folder, 1, ())
        self._first, self._drift, self._limit = first, drift, max_batch_size
        self._thresholds: Any = None  # `reconfigure` sets them, before the first request
        # Easy images are answered sooner: the monitor has to be told in the order in which they came.
        self._came, self._told = 0, 0
        self._answered: dict[int, Arrays | None] = {}
        self._untold: list[Arrays] = []
        self._telling: asyncio.Future[None] | None = None
        self._left = metrics.Counter("exitens_images", "Images by the exit they left at", ("exit",))

    def reconfigure(self, config: Mapping[str, Any] | None) -> None:
        """Ray calls it before the first request, with the thresholds that the app was made with."""
        chosen = (config or {}).get("thresholds")
        self._thresholds = self._network.thresholds(
            self._network.manifest["policy"]["thresholds"] if chosen is None else chosen
        )

    async def set_thresholds(self, thresholds: Any) -> None:
        """Takes new thresholds; requests on their way keep those they came with."""
        self._thresholds = self._network.thresholds(thresholds)

    async def predict(self, images: np.ndarray, thresholds: Any = None) -> Arrays:
        """Early exit for a request, as `Runtime.predict`.

        Args:
            images: array `(rows, height, width, channels)`, or a single image without the first axis.
            thresholds: as `Runtime.predict` takes them.

        Returns:
            A dict of arrays, `logits`, `exit` and `score`.

        Raises:
            ValueError: images or thresholds that do not belong to this network, pixels that are not finite.
        """
        images = np.asarray(images)
        if images.ndim == len(self._network.manifest["input"]["shape"]) - 1:
            images = images[None]
        rows = self._network.start(images)
        if not rows.finite.all():
            raise ValueError(
                "Some pixels are not finite.\n  Expected: finite numbers\n  Received: NaN or infinity in "
                f"image {int(np.flatnonzero(~rows.finite)[0])}\n  Fix: look at how the images were read"
            )
        limits = self._thresholds if thresholds is None else self._network.thresholds(thresholds)
        if not len(images):
            return self._network.predict(images)
        number, result = self._came, None
        self._came += 1
        try:
            parts = [rows.take(slice(i, i + self._limit)) for i in range(0, len(images), self._limit)]
            found = await asyncio.gather(*(asked(self._first, part, limits) for part in parts))
            result = {key: np.concatenate([part[key] for part in found]) for key in found[0]}
        finally:
            self._tell(number, result)
        return result

    def _tell(self, number: int, result: Arrays | None) -> None:
        """Counts the answer to the `number`-th request, `None` where there is none, and tells the monitor."""
        for index, count in enumerate(np.bincount(result["exit"]) if result else ()):
            if count:
                self._left.inc(int(count), {"exit": self._network.exit_names[index]})
        if self._drift is None:
            return
        self._answered[number] = result
        while self._told in self._answered:
            before = self._answered.pop(self._told)
            self._told += 1
            if before:
                self._untold.append(before)
        if self._untold and (self._telling is None or self._telling.done()):
            self._telling = asyncio.ensure_future(self._tell_all())

    async def _tell_all(self) -> None:
        """One call at a time, for all that has gathered: so the order is kept, and a request costs little."""
        while self._untold:
            told, self._untold = self._untold, []
            both = {key: np.concatenate([part[key] for part in told]) for key in ("exit", "score")}
            await self._drift.update.remote(both)

    @http.post("/predict")
    async def predict_by_http(self, request: Request) -> Response:
        """Images as JSON, `{"images": ...}`, or as the bytes of a `.npy` file; see the documentation."""
        try:
            images, thresholds = read(
                await request.body(),
                request.headers.get("content-type", ""),
                self._network.manifest["input"]["dtype"],
            )
            result = await self.predict(images, thresholds)
        except ValueError as problem:
            return told(422, str(problem))
        except BUSY:
            return told(503, "Too many requests wait already: try again later.", {"retry-after": "1"})
        except GONE:
            return told(503, "A stage of the network is being restarted: try again.", {"retry-after": "1"})
        if NPZ in request.headers.get("accept", ""):
            file = io.BytesIO()
            arrays: Any = result
            np.savez(file, **arrays)
            return Response(file.getvalue(), media_type=NPZ)
        text = json.dumps({key: value.tolist() for key, value in result.items()})
        return Response(text.replace("NaN", "null"), media_type="application/json")

    @http.get("/health")
    async def health(self) -> dict[str, Any]:
        """What is served."""
        manifest = self._network.manifest
        return {
            "status": "ready",
            "model": manifest["model"],
            "input": manifest["input"],
            "exits": manifest["exits"],
            "thresholds": [str(t) for t in self._thresholds],
        }

    @http.get("/drift")
    async def drift(self) -> Any:
        """What the drift monitor says."""
        if self._drift is None:
            return told(404, "This app was made without a drift monitor: ray_app(..., drift=path).")
        return await self._drift.report.remote()
