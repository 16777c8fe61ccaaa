"""The runtime without its engines: routing as the policies have it, and what is refused."""

import json
import math
import pathlib
import shutil

import numpy as np
import pytest
from harness import same

from keras_exitens import policies, runtime

EXITS, ROWS, CLASSES = 4, 300, 5
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(0, 2, (1, ROWS, CLASSES)) + RNG.normal(0, 1, (EXITS, ROWS, CLASSES))).astype("float32")


def images(rows=ROWS):
    """Images whose every pixel is the number of the row."""
    return np.broadcast_to(np.arange(rows, dtype="float32")[:, None, None, None], (rows, 2, 3, 1)).copy()


def network(policy, logits=LOGITS, counts=None):
    """A `Runtime` whose stages look the logits up by the number in the image.

    The last stage reads it from a tensor that the first one made; `counts` gets the rows of each stage.
    """
    policy = policy.for_exits(EXITS)
    names = ("exit_1", "exit_2", "exit_3", "final")
    enabled = policy.enabled_exits(EXITS)
    kinds = {policies.get(name): name for name in ("max_probability", "entropy", "margin", "patience")}

    def runner(index, source):
        def run(values):
            (given,) = values.values()
            if counts is not None:
                counts.append((index, len(given)))
            assert len(given)
            rows = np.nan_to_num(given.reshape(len(given), -1)[:, 0]).astype(int)
            return {"logits": logits[index][rows], "kept": given[:, :1, :1]}

        return run

    sources = ["pixels"] + ["pixels" if index < EXITS - 1 else "kept" for index in enabled[1:]]
    manifest = {
        "exits": names,
        "labels": None,
        "classes": CLASSES,
        "input": {"name": "images", "shape": [None, 2, None, 1], "dtype": "float32"},
        "policy": {
            "kind": kinds[type(policy)],
            "thresholds": [str(t) for t in policy.thresholds],
            "temperatures": policy.temperatures,
            "enabled": policy.enabled,
            "ensemble": policy.ensemble,
        },
        "stages": [
            {
                "exit": names[index],
                "inputs": [{"name": source}],
                "carried": ["pixels", "kept"] if index < EXITS - 1 else [],
            }
            for index, source in zip(enabled, sources, strict=True)
        ],
    }
    runners = [runner(index, source) for index, source in zip(enabled, sources, strict=True)]
    return runtime.Runtime(json.loads(json.dumps(manifest)), runners)


POLICIES = {
    "max_probability": policies.MaxProbability([0.5, 0.6, 0.7], [1.5, 0.8, 1.0, 2.0]),
    "entropy": policies.Entropy([0.3, 0.35, 0.4], 0.7),
    "margin": policies.Margin([0.3, 0.35, 0.45]),
    "patience": policies.Patience([1.5, 2, 2]),
    "ensemble": policies.Entropy(0.4, [1.5, 0.8, 1.0, 2.0], ensemble=True),
    "patience of the ensemble": policies.Patience(2, ensemble=True),
    "without the first": policies.MaxProbability(0.6, 1.0, enabled=[False, True, True], ensemble=True),
    "without the middle": policies.Patience(2, 1.0, enabled=[True, False, True]),
    "final alone": policies.MaxProbability(0.5, enabled=False),
    "always": policies.Margin(-math.inf),
    "never": policies.Entropy(math.inf, ensemble=True),
}


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_rows_are_routed_as_the_policy_says(policy, batch_size):
    wanted = policy.simulate(LOGITS)
    found = network(policy).predict(images(), batch_size)
    assert {key: value.dtype.name for key, value in found.items()} == {
        "logits": "float32",
        "exit": "int32",
        "score": "float32",
    }
    assert same(found, wanted)


def test_stages_see_only_the_rows_that_reach_them():
    counts = []
    exits = network(POLICIES["entropy"], counts=counts).predict(images(), ROWS)["exit"]
    reaching = [(k, int((exits >= k).sum())) for k in range(EXITS)]
    assert counts == reaching and 0 < reaching[-1][1] < reaching[1][1] < ROWS
    counts.clear()
    network(POLICIES["always"], counts=counts).predict(images(), 100)
    assert counts == [(0, 100)] * 3


def test_other_thresholds():
    policy = POLICIES["max_probability"]
    found = network(policy).predict(images(), thresholds=[0.9, math.inf, -math.inf])
    config = {**policy.get_config(), "thresholds": [0.9, math.inf, -math.inf]}
    assert same(found, policies.MaxProbability.from_config(config).simulate(LOGITS))
    assert set(found["exit"]) == {0, 2}
    assert set(network(policy).predict(images(), thresholds=math.inf)["exit"]) == {EXITS - 1}


def test_thresholds_have_the_precision_of_the_scores():
    score = policies.MaxProbability(0.5).simulate(LOGITS)["score"][0]
    threshold = float(str(score))  # a float64 a little off the float32 score
    assert threshold != float(score)
    found = network(policies.MaxProbability(threshold)).predict(images(1))
    assert found["exit"] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_image_that_is_not_finite_goes_to_the_end_alone(bad):
    x = images()
    x[5, 1, 2] = bad
    found, wanted = network(POLICIES["always"]).predict(x), POLICIES["always"].simulate(LOGITS)
    assert found["exit"][5] == EXITS - 1 and np.isnan(found["score"][5])
    others = np.arange(ROWS) != 5
    assert same({k: v[others] for k, v in found.items()}, {k: v[others] for k, v in wanted.items()})


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite(policy, bad):
    logits = LOGITS.copy()
    logits[:, 3, 1] = bad
    with np.errstate(invalid="ignore"):
        wanted = policy.simulate(logits)
    with np.errstate(all="raise"):
        assert same(network(policy, logits).predict(images()), wanted)


def test_no_rows_and_one_row():
    empty = network(POLICIES["entropy"]).predict(images()[:0])
    assert {key: value.shape for key, value in empty.items()} == {
        "logits": (0, CLASSES),
        "exit": (0,),
        "score": (0,),
    }
    one = network(POLICIES["entropy"]).predict(images()[7:8])
    assert same(one, {k: v[7:8] for k, v in POLICIES["entropy"].simulate(LOGITS).items()})


def test_dtypes_within_the_kind():
    wanted = network(POLICIES["entropy"]).predict(images(200))
    for dtype in ("float64", "float16", "uint8", "int64"):
        assert same(network(POLICIES["entropy"]).predict(images(200).astype(dtype)), wanted)
    assert same(network(POLICIES["entropy"]).predict(images(200).tolist()), wanted)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images()[0], r"add a first axis to a single image: images\[None\]"),
        (np.zeros((4, 2, 3, 3), "float32"), r"\(rows, 2, any, 1\) of float32\n.*shape \(4, 2, 3, 3\)"),
        (np.zeros((4, 3, 3, 1), "float32"), r"shape \(4, 3, 3, 1\)"),
        (np.zeros((4, 6), "float32"), r"shape \(4, 6\)"),
        (np.zeros((4, 2, 3, 1), "complex64"), "complex64"),
        (np.full((4, 2, 3, 1), "a"), "of float32\n.*<U1"),
        (np.full((4, 2, 3, 1), None), "object"),
    ],
)
def test_images_that_do_not_fit(x, message):
    with pytest.raises(ValueError, match=message):
        network(POLICIES["entropy"]).predict(x)


@pytest.mark.parametrize("thresholds", [[0.5], [0.5] * 4, math.nan, [0.1, math.nan, 0.1], [[0.1, 0.1, 0.1]]])
def test_thresholds_that_do_not_fit(thresholds):
    with pytest.raises(ValueError, match="one number, or 3, none of them NaN"):
        network(POLICIES["entropy"]).predict(images(), thresholds=thresholds)


@pytest.mark.parametrize("batch_size", [0, -1, math.nan, "8"])
def test_batch_size_that_is_none(batch_size):
    with pytest.raises(ValueError, match="`batch_size` is out of range"):
        network(POLICIES["entropy"]).predict(images(), batch_size)


# Stage by stage, as servers run them


@pytest.mark.parametrize(
    "policy",
    [
        policies.MaxProbability((0.6, 0.5, 0.7)),
        policies.MaxProbability((0.6, 0.5, 0.7), ensemble=True, enabled=(True, False, True)),
        policies.Patience(2),
    ],
    ids=["probability", "ensemble with a disabled exit", "patience"],
)
def test_rows_of_many_requests_go_on_together_as_they_would_alone(policy):
    """Requests of 1 to 7 rows, joined anew at each stage, by thresholds of their own."""
    runtime_ = network(policy)
    rng = np.random.default_rng(1)
    cuts = np.cumsum(rng.integers(1, 8, 60))
    requests = np.split(np.arange(ROWS), cuts[cuts < ROWS])
    others = runtime_.thresholds(-1.0)  # every second request leaves at the first exit
    limits = [runtime_.thresholds([float(t) for t in runtime_.manifest["policy"]["thresholds"]]), others]
    waiting = [(k, rows, runtime_.start(images()[rows])) for k, rows in enumerate(requests)]
    result = {key: np.zeros_like(value) for key, value in runtime_.predict(images()).items()}
    for number in range(len(runtime_.stages)):
        if not waiting:
            break
        thresholds = np.concatenate(
            [np.repeat(limits[k % 2][:, None], len(rows), axis=1) for k, rows, _ in waiting], axis=1
        )
        together = runtime.Rows.joined([group for *_, group in waiting])
        found, going_on, rest = runtime_.advance(number, together, thresholds)
        every = np.concatenate([rows for _, rows, _ in waiting])
        for key, value in found.items():
            result[key][every] = value
        start, left, after = 0, 0, []
        for k, rows, _ in waiting:
            on = going_on[start : start + len(rows)]
            if on.any():
                after.append((k, rows[on], rest.take(slice(left, left + on.sum()))))
            start, left = start + len(rows), left + on.sum()
        waiting = after
    for k, rows in enumerate(requests):
        alone = runtime_.predict(images()[rows], thresholds=limits[k % 2])
        for key, value in alone.items():
            np.testing.assert_allclose(result[key][rows], value, rtol=1e-6)


def test_bytes_stay_bytes_until_a_stage_takes_them():
    runtime_ = network(policies.MaxProbability(0.6))
    pixels = images(200).astype("uint8")
    rows = runtime_.start(pixels)
    assert {value.dtype.name for value in rows.values.values()} == {"uint8"} and rows.finite.all()
    given = []
    stage = runtime_.stages[0]
    runtime_.stages[0] = stage._replace(run=lambda values: given.append(values) or stage.run(values))
    runtime_.advance(0, rows)
    assert {value.dtype.name for value in given[0].values()} == {"float32"}
    found, wanted = runtime_.predict(pixels), runtime_.predict(images(200))
    np.testing.assert_array_equal(found["exit"], wanted["exit"])


def test_one_stage_can_be_loaded_without_the_others(tmp_path):
    saved = shutil.copytree(pathlib.Path(__file__).parents[1] / "data/saved/onnx", tmp_path / "onnx")
    whole = runtime.load(saved, threads=1)
    shape = [2, *(n or 16 for n in whole.manifest["input"]["shape"][1:])]
    pixels = np.zeros(shape, whole.manifest["input"]["dtype"])
    (saved / whole.manifest["stages"][1]["file"]).unlink()  # only what is loaded has to be there
    first = runtime.load(saved, threads=1, stages=[0])
    rows = first.start(pixels)
    np.testing.assert_array_equal(
        first.advance(0, rows)[0]["logits"], whole.advance(0, whole.start(pixels))[0]["logits"]
    )
    going_on = first.advance(0, rows, np.full(len(first.exit_names) - 1, np.inf, "float32"))[2]
    with pytest.raises(RuntimeError, match="was not loaded"):
        first.advance(1, going_on)
    with pytest.raises(ValueError, match="damaged or missing"):
        runtime.load(saved, threads=1)
