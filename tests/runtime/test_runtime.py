"""The runtime without its engines: routing as the policies have it, and what is refused."""

import json
import math

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
