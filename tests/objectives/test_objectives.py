"""The objectives against the NumPy reference: terms, gradients, limits, schedules, configs, bad arguments."""

import inspect
import json
from typing import NamedTuple

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from keras.optimizers.schedules import PolynomialDecay

from keras_exitens import objectives
from keras_exitens.objectives import BEED, BYOT, DBT, EED, CrossEntropy

ROWS, CLASSES, WIDTH = 6, 4, 5


class Case(NamedTuple):
    """An objective, and what the reference says of it: functions of (logits, features, y)."""

    objective: objectives.Objective
    terms: callable
    gradients: callable
    state: dict


def case(objective, terms, gradients, state=None, **options):
    return Case(
        objective,
        lambda z, f, y, **teacher: terms(z, f, y, **options, **teacher),
        lambda z, f, y: gradients(z, f, y, **options),
        state or {},
    )


def _dbt(z, f, y, **options):
    return reference.dbt(z, y, **options)


def _dbt_grad(z, f, y, **options):
    return reference.dbt_grad(z, y, **options)


def _cross_entropy(z, f, y, **options):
    return reference.cross_entropy(z, y, **options)


def _cross_entropy_grad(z, f, y, **options):
    return reference.cross_entropy_grad(z, y, **options)


def eed(objective, **options):
    return case(objective, reference.eed, reference.eed_grad, **options)


def beed(objective, **options):
    return case(objective, reference.beed, reference.beed_grad, **options)


def byot(objective, **options):
    return case(objective, reference.byot, reference.byot_grad, **options)


def dbt(objective, state=None, **options):
    return case(objective, _dbt, _dbt_grad, state, **options)


def deep_supervision(objective, **options):
    return case(objective, _cross_entropy, _cross_entropy_grad, **options)


# The reference is told every value; the library has its own defaults.
CASES = {
    "eed": eed(EED("mse"), output_loss="mse", output_weight=1, feature_weight=1),
    "eed mse, weights": eed(
        EED("mse", output_weight=2.5, feature_weight=0.3), output_weight=2.5, feature_weight=0.3
    ),
    "eed kl": eed(EED("kl"), output_loss="kl", output_weight=0.1, temperature=3, feature_weight=1),
    "eed kl, weights": eed(
        EED("kl", output_weight=0.7, temperature=2.0, feature_weight=0.4),
        output_loss="kl",
        output_weight=0.7,
        temperature=2.0,
        feature_weight=0.4,
    ),
    "eed, no output loss": eed(EED(None, feature_weight=2), output_weight=0, feature_weight=2),
    "eed, no features": eed(EED("mse", feature_weight=0), feature_weight=0),
    "eed, neither": eed(EED(None, feature_weight=0), output_weight=0, feature_weight=0),
    "beed": beed(BEED(), alpha=1.15, beta=1.6, temperature=3, feature_weight=0.1),
    "beed, weights": beed(
        BEED(alpha=1.3, beta=0.8, temperature=2.0, feature_weight=0.5),
        alpha=1.3,
        beta=0.8,
        temperature=2.0,
        feature_weight=0.5,
    ),
    "beed, no features": beed(BEED(feature_weight=0), feature_weight=0),
    "dbt": dbt(DBT(), weight=0.5, temperature=4),
    "dbt, weights": dbt(DBT(weight=0.8, temperature=1.5), weight=0.8, temperature=1.5),
    "dbt, all distillation": dbt(DBT(weight=1), weight=1),
    "dbt, no distillation": dbt(DBT(weight=0), weight=0),
    "dbt annealed": dbt(DBT(temperature="annealed"), {"temperature": 1.75}, weight=0.5, temperature=1.75),
    "byot": byot(BYOT(), alpha=0.3, temperature=3, feature_weight=0.03),
    "byot, weights": byot(
        BYOT(alpha=0.6, temperature=2.0, feature_weight=0.2), alpha=0.6, temperature=2.0, feature_weight=0.2
    ),
    "byot, t squared": byot(
        BYOT(alpha=0.6, temperature=2.0, feature_weight=0.2, t_squared=True),
        alpha=0.6,
        temperature=2.0,
        feature_weight=0.2,
        t_squared=True,
    ),
    "byot, no features": byot(BYOT(feature_weight=0), feature_weight=0),
    "cross-entropy": deep_supervision(CrossEntropy()),
    "cross-entropy, weights": deep_supervision(CrossEntropy([0.5, 0, 2]), weights=[0.5, 0, 2]),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
soft_labels = pytest.mark.parametrize("soft", [False, True], ids=["ids", "probabilities"])


def batch(soft=False, exits=3, rows=ROWS, seed=0, scale=2.0):
    """Logits, features (about half of them negative) and labels, float64."""
    rng = np.random.default_rng(seed)
    logits = [scale * rng.normal(size=(rows, CLASSES)) for _ in range(exits)]
    features = [rng.normal(size=(rows, WIDTH)) for _ in range(exits)]
    y = rng.dirichlet(np.ones(CLASSES), size=rows)
    return logits, features, y if soft else y.argmax(axis=1)


def tensors(arrays, dtype="float64"):
    return [tf.Variable(tf.cast(a, dtype)) for a in arrays]


def state_of(values, step=0, dtype="float32"):
    return {"step": tf.constant(step, "int64"), **{k: tf.constant(v, dtype) for k, v in values.items()}}


def run(case, logits, features, y, step=0):
    """Terms as float64 arrays."""
    state = state_of(case.state, step, logits[0].dtype)
    terms, _ = case.objective(logits, features, tf.constant(y), state)
    return {key: np.asarray(tf.cast(value, "float64")) for key, value in terms.items()}


def gradients_of(case, logits, features, y, terms=("classification", "distillation", "feature")):
    """dL/dlogits and dL/dfeatures of the mean over rows of the sum of `terms`, zeros where unconnected."""
    with tf.GradientTape() as tape:
        state = state_of(case.state, dtype=logits[0].dtype)
        values, _ = case.objective(logits, features, tf.constant(y), state)
        loss = tf.reduce_mean(sum(values[key] for key in terms if key in values))
    found = tape.gradient(loss, [*logits, *features], unconnected_gradients="zero")
    return [np.asarray(g) for g in found]


def assert_terms(found, expected, **tolerance):
    """A term that an objective leaves out is zero in the reference."""
    assert set(found) <= set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found.get(key, np.zeros_like(value)), value, err_msg=key, **tolerance)


# Values -----------------------------------------------------------------------------------------


@cases
@soft_labels
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_every_term_of_every_sample_equals_the_reference(case, soft, dtype):
    logits, features, y = batch(soft)
    logits, features = tensors(logits, dtype), tensors(features, dtype)
    state = state_of(case.state, dtype="float64" if dtype == "float64" else "float32")
    terms, _ = case.objective(logits, features, tf.constant(y), state)
    # Half precision is rounded once, in the logits; all that follows is float32.
    assert {t.dtype.name for t in terms.values()} == {"float64" if dtype == "float64" else "float32"}
    assert all(t.shape == (ROWS,) for t in terms.values())
    exact = [[np.asarray(tf.cast(t, "float64")) for t in ts] for ts in (logits, features)]
    expected = case.terms(*exact, y)
    found = {key: np.asarray(tf.cast(value, "float64")) for key, value in terms.items()}
    tolerance = {"rtol": 1e-10, "atol": 1e-13} if dtype == "float64" else {"rtol": 1e-5, "atol": 1e-6}
    assert_terms(found, expected, **tolerance)


@pytest.mark.parametrize("exits", [2, 5])
@pytest.mark.parametrize("name", ["eed", "eed kl", "beed", "dbt", "byot", "cross-entropy"])
def test_other_numbers_of_exits(name, exits):
    logits, features, y = batch(exits=exits)
    found = run(CASES[name], tensors(logits), tensors(features), y)
    assert_terms(found, CASES[name].terms(logits, features, y), rtol=1e-10)


@cases
def test_one_sample_is_no_concern_of_another(case):
    logits, features, y = batch()
    together = run(case, tensors(logits), tensors(features), y)
    alone = run(case, tensors(z[2:3] for z in logits), tensors(f[2:3] for f in features), y[2:3])
    for key, value in together.items():
        np.testing.assert_allclose(value[2:3], alone[key], rtol=1e-12)


@cases
def test_huge_logits_neither_overflow_nor_lose_precision(case):
    logits, features, y = batch(scale=1e4)
    found = run(case, tensors(logits, "float32"), tensors(features, "float32"), y)
    exact = [np.float32(z).astype("float64") for z in logits]
    assert_terms(found, case.terms(exact, features, y), rtol=1e-4, atol=1e-4)


@cases
def test_inputs_are_left_alone(case):
    logits, features, y = (tensors(a) if isinstance(a, list) else a for a in batch())
    before = [np.asarray(t).copy() for t in (*logits, *features)]
    state = state_of(case.state, dtype="float64")
    kept = dict(state)
    first, _ = case.objective(logits, features, tf.constant(y), state)
    second, _ = case.objective(logits, features, tf.constant(y), state)
    assert state == kept
    assert all(np.array_equal(a, t) for a, t in zip(before, (*logits, *features), strict=True))
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_the_classification_loss_is_the_one_that_is_given():
    """Here a Brier score, told apart from cross-entropy in every objective and multiplied as it is."""
    logits, _, y = batch()

    def brier(y, z):
        return tf.reduce_sum(tf.square(tf.nn.softmax(z) - tf.one_hot(y, CLASSES, dtype=z.dtype)), axis=-1)

    scores = [np.square(reference.softmax(z) - np.eye(CLASSES)[y]).sum(axis=-1) for z in logits]
    for objective, weights in (
        (EED("mse", feature_weight=0), [1, 1, 1]),
        (BEED(feature_weight=0), [2 - 1.15**2, 2 - 1.15, 1]),
        (DBT(weight=0.2), [0.8, 0.8, 0.8]),
        (BYOT(feature_weight=0, alpha=0.4), [0.6, 0.6, 1]),
        (CrossEntropy([3, 0, 0.5]), [3, 0, 0.5]),
    ):
        terms, _ = objective(tensors(logits), None, tf.constant(y), state_of({}), loss=brier)
        expected = sum(w * s for w, s in zip(weights, scores, strict=True))
        np.testing.assert_allclose(terms["classification"], expected, rtol=1e-10, err_msg=str(objective))


# Gradients --------------------------------------------------------------------------------------


@cases
@soft_labels
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradients_equal_the_closed_form(case, soft, dtype):
    logits, features, y = batch(soft)
    found = gradients_of(case, tensors(logits, dtype), tensors(features, dtype), y)
    dlogits, dfeatures = case.gradients(logits, features, y)
    expected = [*dlogits, *[np.broadcast_to(g, (ROWS, WIDTH)) for g in dfeatures]]
    tolerance = {"rtol": 1e-9, "atol": 1e-14} if dtype == "float64" else {"rtol": 1e-5, "atol": 1e-6}
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


TEACHERS = {
    "eed": reference.mean_teacher,
    "beed": reference.beed_teacher,
    "dbt": lambda z, f: reference.final_teacher(z, f)[0],
    "byot": reference.final_teacher,
}


@soft_labels
@pytest.mark.parametrize(
    "name",
    [
        "eed mse, weights",
        "eed kl, weights",
        "beed",
        "dbt, weights",
        "dbt annealed",
        "byot, t squared",
        "byot",
    ],
)
def test_gradients_equal_finite_differences_with_the_teacher_held_fixed(name, soft):
    case = CASES[name]
    logits, features, y = batch(soft)
    teacher = TEACHERS[name.split()[0].strip(",")](logits, features)
    found = gradients_of(case, tensors(logits), tensors(features), y)
    for array, gradient in zip([*logits, *features], found, strict=True):

        def loss():
            return reference.mean_loss(case.terms(logits, features, y, teacher=teacher))

        assert reference.deviation(loss, array, gradient) < 1e-7


# Limits -----------------------------------------------------------------------------------------

SQUARES_AND_KL = ["eed", "eed mse, weights", "beed", "beed, weights"]
CROSS_ENTROPIES = [
    "eed kl",
    "eed kl, weights",
    "dbt",
    "dbt, weights",
    "dbt annealed",
    "byot",
    "byot, t squared",
]


@pytest.mark.parametrize("name", SQUARES_AND_KL)
def test_squares_and_kl_vanish_where_all_exits_agree(name):
    logits, features, y = batch()
    found = run(CASES[name], tensors(logits[:1] * 3), tensors(features[:1] * 3), y)
    np.testing.assert_allclose(found["distillation"], 0, atol=1e-13)
    np.testing.assert_allclose(found["feature"], 0, atol=1e-13)
    apart = run(CASES[name], tensors(logits), tensors(features), y)
    assert (apart["distillation"] > 1e-3).all()
    assert (apart["feature"] > 1e-4).all()


@pytest.mark.parametrize("name", CROSS_ENTROPIES)
def test_the_gradient_of_a_cross_entropy_vanishes_where_all_exits_agree(name):
    logits, features, y = batch()
    agreed = tensors(logits[:1] * 3), tensors(features[:1] * 3)
    for gradient in gradients_of(CASES[name], *agreed, y, terms=("distillation", "feature")):
        np.testing.assert_allclose(gradient, 0, atol=1e-14)
    apart = gradients_of(CASES[name], tensors(logits), tensors(features), y, terms=("distillation",))
    assert max(np.abs(g).max() for g in apart) > 1e-3


@cases
def test_a_constant_added_to_all_logits_changes_nothing(case):
    """Nor the squares, since it is added to the teacher as well."""
    logits, features, y = batch()
    shift = np.linspace(-40, 30, ROWS)[:, None]
    before = run(case, tensors(logits), tensors(features), y)
    after = run(case, tensors(z + shift for z in logits), tensors(features), y)
    for key in before:
        np.testing.assert_allclose(after[key], before[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("exit_", [0, 1, 2])
@pytest.mark.parametrize("name", ["eed kl", "beed", "dbt", "byot", "cross-entropy"])
def test_a_constant_added_to_the_logits_of_one_exit_changes_nothing(name, exit_):
    logits, features, y = batch()
    before = run(CASES[name], tensors(logits), tensors(features), y)
    logits[exit_] = logits[exit_] + np.linspace(-40, 30, ROWS)[:, None]
    after = run(CASES[name], tensors(logits), tensors(features), y)
    for key in before:
        np.testing.assert_allclose(after[key], before[key], rtol=1e-10)


def test_eed_ignores_features_that_neither_student_nor_teacher_has():
    """One feature: student below 0, teacher below 0, and each of the mixed cases."""
    features = [np.array([[-1.0, 1.0, -1.0]]), np.array([[-3.0, -5.0, 7.0]])]
    logits = [np.zeros((1, CLASSES))] * 2
    terms, _ = EED(None)(tensors(logits), tensors(features), tf.constant([0]), state_of({}))
    # teachers -2, -2, 3; only the second student's middle feature is off where its teacher is
    np.testing.assert_allclose(terms["feature"], [(3**2 + 4**2 + 4**2) / 3], rtol=1e-12)


def test_the_default_is_the_choice_with_the_least_regret():
    assert EED().get_config() == EED("kl").get_config()
    assert EED().get_config() != EED("mse").get_config()


# α of BEED --------------------------------------------------------------------------------------


@pytest.mark.parametrize("exits", [2, 3, 4, 7])
def test_beed_names_the_largest_alpha(exits):
    largest = 2 ** (1 / (exits - 1))
    BEED(alpha=largest * (1 - 1e-9)).check(exits)
    with pytest.raises(ValueError, match="alpha") as error:
        BEED(alpha=largest * (1 + 1e-9)).check(exits)
    message = str(error.value)
    assert f"{largest:.6g}" in message
    fix = float(message.split("pass alpha=")[1].split(",")[0])
    assert 0 < largest - fix < 2e-3
    BEED(alpha=fix).check(exits)


def test_beed_refuses_alpha_also_when_it_is_called():
    logits, features, y = batch(exits=6)
    with pytest.raises(ValueError, match=r"alpha < 1\.1487"):
        BEED()(tensors(logits), tensors(features), tf.constant(y), state_of({}))


# Schedules --------------------------------------------------------------------------------------

SCHEDULE = PolynomialDecay(0.8, decay_steps=10, end_learning_rate=0.2, power=1.0)
SCHEDULED = {
    "EED.output_weight": lambda w: EED("mse", output_weight=w),
    "EED.output_weight, kl": lambda w: EED("kl", output_weight=w),
    "EED.feature_weight": lambda w: EED(feature_weight=w),
    "BEED.feature_weight": lambda w: BEED(feature_weight=w),
    "DBT.weight": lambda w: DBT(weight=w),
    "BYOT.alpha": lambda w: BYOT(alpha=w),
    "BYOT.feature_weight": lambda w: BYOT(feature_weight=w),
    "CrossEntropy.weights": lambda w: CrossEntropy([1, w, 0.5]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", SCHEDULED.values(), ids=SCHEDULED.keys())
def test_a_schedule_is_the_weight_of_its_step(make, dtype):
    logits, features, y = batch()
    logits, features = tensors(logits, dtype), tensors(features, dtype)
    values = []
    for step, weight in ((0, 0.8), (5, 0.5), (10, 0.2), (1000, 0.2)):
        scheduled, _ = make(SCHEDULE)(logits, features, tf.constant(y), state_of({}, step))
        constant, _ = make(weight)(logits, features, tf.constant(y), state_of({}, step))
        assert set(scheduled) == set(constant)
        for key in constant:
            np.testing.assert_allclose(scheduled[key], constant[key], rtol=2e-6, err_msg=f"{key} at {step}")
        values.append(sum(float(tf.reduce_sum(v)) for v in constant.values()))
    assert len({round(v, 3) for v in values}) == 3  # each of 0.8, 0.5 and 0.2 was seen


def test_a_schedule_of_feature_weights_uses_features():
    zero = PolynomialDecay(0.0, 10, 1.0)
    assert EED(feature_weight=zero).uses_features
    assert BEED(feature_weight=zero).uses_features
    assert BYOT(feature_weight=zero).uses_features


@pytest.mark.parametrize("zero", [0, 0.0, np.float32(0), np.float64(0), np.int64(0)], ids=lambda z: type(z))
@pytest.mark.parametrize("objective", [EED, BEED, BYOT])
def test_a_feature_weight_of_zero_uses_no_features(objective, zero):
    assert not objective(feature_weight=zero).uses_features
    assert objective(feature_weight=type(zero)(1)).uses_features


# Annealing --------------------------------------------------------------------------------------


def test_the_annealed_temperature_follows_the_reference():
    objective = DBT(temperature="annealed")
    state = objective.initial_state()
    expected, rises = state["temperature"], 0
    assert expected == 1.0
    for seed in range(40):
        logits, _, y = batch(seed=seed, scale=2.0 if seed % 3 else 0.2)
        _, state = objective(tensors(logits, "float32"), None, tf.constant(y), state_of(state, seed))
        following = reference.dbt_next_temperature(logits, expected)
        rises += following > expected
        expected = following
        np.testing.assert_allclose(state["temperature"], expected, rtol=1e-5)
        state = {key: float(value) for key, value in state.items()}
    assert 5 < rises < 35  # it rose sometimes and stayed sometimes


def test_float64_logits_take_the_float32_temperature_of_the_distiller():
    case = CASES["dbt annealed"]
    logits, features, y = batch()
    terms, state = case.objective(tensors(logits), None, tf.constant(y), state_of(case.state))
    assert terms["distillation"].dtype == "float64"
    expected = case.terms(logits, features, y)["distillation"]
    np.testing.assert_allclose(terms["distillation"], expected, rtol=1e-10)
    following = reference.dbt_next_temperature(logits, 1.75)
    np.testing.assert_allclose(state["temperature"], following, rtol=1e-6)


@pytest.mark.parametrize("confidence, factor", [(0.501, 1.05), (0.499, 1.0)])
def test_annealing_starts_above_a_half(confidence, factor):
    gap = 2 * np.log(confidence / (1 - confidence) * (CLASSES - 1))  # at T = 2; the others share the rest
    logits = [np.zeros((3, CLASSES)), np.tile([gap, 0, 0, 0], (3, 1))]
    _, state = DBT(temperature="annealed")(
        tensors(logits, "float32"), None, tf.constant([0, 1, 2]), state_of({"temperature": 2.0})
    )
    np.testing.assert_allclose(state["temperature"], 2 * factor, rtol=1e-6)


def test_annealing_asks_for_the_mean_over_all_replicas():
    asked = []

    def batch_mean(values):
        asked.append(np.asarray(values))
        return tf.constant(0.9)  # another replica is confident

    logits, _, y = batch(scale=0.0)
    _, state = DBT(temperature="annealed")(
        tensors(logits, "float32"),
        None,
        tf.constant(y),
        state_of({"temperature": 1.0}),
        batch_mean=batch_mean,
    )
    np.testing.assert_allclose(asked, np.full((1, ROWS), 1 / CLASSES), rtol=1e-6)
    np.testing.assert_allclose(state["temperature"], 1.05, rtol=1e-6)


@cases
def test_only_annealing_has_state(case):
    logits, features, y = batch()
    logits, features = tensors(logits, "float32"), tensors(features, "float32")
    _, state = case.objective(logits, features, tf.constant(y), state_of(case.state))
    assert set(state) == set(case.objective.initial_state()) == set(case.state)


# Configs ----------------------------------------------------------------------------------------

ALL_ARGUMENTS = {
    "eed": EED(output_loss="mse", output_weight=0.7, temperature=1.5, feature_weight=0.2),
    "eed, schedules": EED("mse", SCHEDULE, 2.0, PolynomialDecay(3.0, 7, 1.0)),
    "eed, no output": EED(output_loss=None, output_weight=0.7, temperature=1.5, feature_weight=0.2),
    "beed": BEED(alpha=1.2, beta=0.7, temperature=2.0, feature_weight=0.9),
    "beed, schedule": BEED(alpha=1.2, beta=0.7, temperature=2.0, feature_weight=SCHEDULE),
    "dbt": DBT(weight=0.2, temperature=2.5),
    "dbt annealed": DBT(weight=SCHEDULE, temperature="annealed"),
    "byot": BYOT(alpha=0.7, temperature=2.0, feature_weight=0.5, t_squared=True),
    "byot, schedules": BYOT(alpha=SCHEDULE, temperature=2.0, feature_weight=SCHEDULE, t_squared=True),
    "cross-entropy": CrossEntropy(weights=[0.5, 2, 0]),
    "cross-entropy, schedule": CrossEntropy(weights=[0.5, SCHEDULE, 3]),
    "numpy numbers": BEED(np.float32(1.25), np.float64(0.5), np.int64(2), np.float32(0.75)),
}
STATE = {"temperature": 1.75}


@pytest.mark.parametrize("objective", ALL_ARGUMENTS.values(), ids=ALL_ARGUMENTS.keys())
def test_a_copy_from_the_config_behaves_as_the_original(objective):
    defaults = type(objective)()
    for name in inspect.signature(type(objective)).parameters:
        assert getattr(objective, name) != getattr(defaults, name), f"{name} is at its default"
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(objective)))
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(objective)
    assert copy.initial_state() == objective.initial_state()
    assert copy.uses_features == objective.uses_features
    logits, features, y = batch()
    arguments = tensors(logits, "float32"), tensors(features, "float32"), tf.constant(y)
    for step in (0, 4, 10):
        original, _ = objective(*arguments, state_of(STATE, step))
        copied, _ = copy(*arguments, state_of(STATE, step))
        usual, _ = defaults(*arguments, state_of(STATE, step))
        assert set(copied) == set(original)
        for key in original:
            np.testing.assert_array_equal(copied[key], original[key])
        total = [np.asarray(sum(terms.values())) for terms in (original, usual)]
        assert np.abs(total[0] - total[1]).min() > 1e-3


@keras.saving.register_keras_serializable(package="test_objectives")
class Confident(objectives.Objective):
    """A user's objective: `L = s sum_i max(z_i)` and a count of batches."""

    def __init__(self, scale=1.0):
        self.scale = scale
        self._private = object()  # not an argument

    def initial_state(self):
        return {"batches": 0.0}

    def terms(self, logits, features, y, state, loss):
        return {"classification": self.scale * sum(keras.ops.max(z, axis=-1) for z in logits)}

    def next_state(self, logits, state, batch_mean):
        return {"batches": state["batches"] + 1}


def test_a_user_made_objective():
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(Confident(2.0)))
    logits, _, y = batch()
    terms, state = copy(tensors(logits), None, tf.constant(y), state_of({"batches": 4.0}))
    np.testing.assert_allclose(terms["classification"], 2 * sum(z.max(axis=-1) for z in logits), rtol=1e-12)
    assert float(state["batches"]) == 5


# Bad arguments ----------------------------------------------------------------------------------

NOT_POSITIVE = [0, -1, float("nan"), float("inf"), "3", None, True, [1.0], np.ones(2)]
NOT_A_WEIGHT = [-0.1, float("nan"), float("inf"), "1", True, [0.5], np.ones(2)]
BAD = [
    *[(EED, "output_loss", v) for v in ("MSE", "l2", 1, True, ["mse"])],
    *[(EED, "output_weight", v) for v in NOT_A_WEIGHT],
    *[(EED, "temperature", v) for v in NOT_POSITIVE],
    *[(EED, "feature_weight", v) for v in [*NOT_A_WEIGHT, None]],
    *[(BEED, "alpha", v) for v in [0.99, -1, float("nan"), float("inf"), "1.1", None, True]],
    *[(BEED, "beta", v) for v in NOT_POSITIVE],
    *[(BEED, "temperature", v) for v in NOT_POSITIVE],
    *[(BEED, "feature_weight", v) for v in [*NOT_A_WEIGHT, None]],
    *[(DBT, "weight", v) for v in [*NOT_A_WEIGHT, None, 1.01]],
    *[(DBT, "temperature", v) for v in [*NOT_POSITIVE, "anneal", "Annealed"]],
    *[(BYOT, "alpha", v) for v in [*NOT_A_WEIGHT, None, 1.01]],
    *[(BYOT, "temperature", v) for v in NOT_POSITIVE],
    *[(BYOT, "feature_weight", v) for v in [*NOT_A_WEIGHT, None]],
    *[(BYOT, "t_squared", v) for v in ("False", None)],
    *[(CrossEntropy, "weights", v) for v in ([1, -1, 1], [1, None, 1], [1, "1", 1], 2, "111", [[1, 1, 1]])],
]


@pytest.mark.parametrize("kind, argument, value", BAD, ids=[f"{k.__name__}.{a}={v!r}" for k, a, v in BAD])
def test_a_bad_argument_is_named(kind, argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`") as error:
        kind(**{argument: value})
    parts = [value, *value] if isinstance(value, list | str) else [value]
    assert any(f"{argument}={part!r}" in str(error.value) for part in parts)


@pytest.mark.parametrize("weights", [[], [1.0], [1, 2], [1, 2, 3, 4]])
def test_cross_entropy_wants_one_weight_an_exit(weights):
    with pytest.raises(ValueError, match="3 weights") as error:
        CrossEntropy(weights).check(3)
    assert str(weights) in str(error.value)


@pytest.mark.parametrize("objective", [DBT(), BYOT()])
def test_a_final_exit_alone_has_nobody_to_teach(objective):
    with pytest.raises(ValueError, match=f"(?s){type(objective).__name__}.*early exit"):
        objective.check(1)
