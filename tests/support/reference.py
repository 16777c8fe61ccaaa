"""The objectives and one training step in plain NumPy float64: the oracle the library is tested against.

Written from the formulas alone and importing nothing of the library: an error has to be made twice to pass.
K exits, the last one final; `logits` is a list of K arrays (B, C), `features` a list of K arrays (B, D), `y`
integer (B,) or probabilities (B, C) whose rows sum to one. An objective returns a dict of per-sample vectors
(B,), already weighted; `mean_loss` makes a number of it. A gradient function returns `(list of dL/dlogits,
list of dL/dfeatures)` of that number with the teacher held fixed; without a feature term, every dL/dfeatures
is the scalar 0.0, a zero of any shape. Run as a script, the file checks all gradients by finite differences.
"""

import numpy as np

EXITS = ("exit_1", "exit_2", "final")  # of the tiny network below
CONVS = ("conv1", "conv2", "conv3")


def floats(arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def log_softmax(z, temperature=1.0):
    """log softmax(z/T) = z/T - log sum_c exp(z_c/T), over the last axis."""
    z = np.asarray(z, np.float64) / temperature
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def softmax(z, temperature=1.0):
    """exp(z_c/T) / sum_c exp(z_c/T), over the last axis."""
    return np.exp(log_softmax(z, temperature))


def probabilities(y, classes):
    """(B, C) from integers (B,): a one in column y. Probabilities pass unchanged."""
    y = np.asarray(y)
    return np.eye(classes)[y] if y.ndim == 1 else y.astype(np.float64)


def soft_cross_entropy(p, z, temperature=1.0):
    """H(p, softmax(z/T)) = -sum_c p_c log softmax(z/T)_c, per sample (B,)."""
    return -(p * log_softmax(z, temperature)).sum(axis=-1)


def ce(z, y):
    """CE(z, y) = -sum_c y_c log softmax(z)_c, per sample (B,)."""
    return soft_cross_entropy(probabilities(y, z.shape[-1]), z)


def ce_grad(z, y):
    """dCE/dz = softmax(z) - y."""
    return softmax(z) - probabilities(y, z.shape[-1])


def kl(z_teacher, z, temperature):
    """KL(softmax(z_teacher/T) || softmax(z/T)) = sum_c p_c (log p_c - log q_c), per sample (B,)."""
    log_p, log_q = log_softmax(z_teacher, temperature), log_softmax(z, temperature)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def terms_of(logits):
    """The three terms, zero, one number a sample."""
    return {key: np.zeros(len(logits[0])) for key in ("classification", "distillation", "feature")}


def mean_loss(terms, sample_weight=None):
    """L = (1/B) sum_b w_b sum_terms l_b: divided by the number of rows, not by the sum of the weights."""
    per_sample = sum(terms.values())
    weight = 1.0 if sample_weight is None else np.asarray(sample_weight, np.float64)
    return float((weight * per_sample).sum() / len(per_sample))


def mean_teacher(logits, features):
    """(z_bar, f_bar) = (1/K sum_i z_i, 1/K sum_i f_i)."""
    return sum(floats(logits)) / len(logits), sum(floats(features)) / len(features)


def beed_teacher(logits, features, beta=1.6):
    """(sum w_i z_i, sum w_i f_i), w_i = beta^(i-1) / sum_j beta^(j-1), i = 1...K: the last weighs most."""
    weights = [beta**i / sum(beta**j for j in range(len(logits))) for i in range(len(logits))]
    z_bar = sum(w * z for w, z in zip(weights, floats(logits), strict=True))
    return z_bar, sum(w * f for w, f in zip(weights, floats(features), strict=True))


def final_teacher(logits, features):
    """(z_K, f_K), copied."""
    return np.array(logits[-1], np.float64), np.array(features[-1], np.float64)


def cross_entropy(logits, y, *, weights=None):
    """Deep supervision: classification = sum_i w_i CE(z_i, y); w_i = 1 unless given."""
    logits, terms = floats(logits), terms_of(logits)
    for w, z in zip(np.ones(len(logits)) if weights is None else weights, logits, strict=True):
        terms["classification"] += w * ce(z, y)
    return terms


def cross_entropy_grad(logits, y, *, weights=None):
    """dL/dz_i = w_i (softmax(z_i) - y) / B."""
    logits = floats(logits)
    weights = np.ones(len(logits)) if weights is None else weights
    dlogits = [w * ce_grad(z, y) for w, z in zip(weights, logits, strict=True)]
    return [d / len(d) for d in dlogits], [0.0] * len(logits)


def eed(
    logits,
    features,
    y,
    *,
    output_loss="mse",
    output_weight=None,
    temperature=3.0,
    feature_weight=1.0,
    teacher=None,
):
    """EED (arXiv 2104.00299), the mean of all exits teaching all exits:

    classification = sum_i CE(z_i, y)
    distillation   = w sum_i mean_c (z_i - z_bar)^2                                       ("mse", w = 1)
                   = w T^2 sum_i sum_c -softmax(z_bar/T)_c log softmax(z_i/T)_c           ("kl",  w = 0.1)
    feature        = w_F sum_i mean_d (f_i - f_bar)^2 [f_i > 0 or f_bar > 0]
    """
    logits, features, terms = floats(logits), floats(features), terms_of(logits)
    z_bar, f_bar = mean_teacher(logits, features) if teacher is None else teacher
    default = {"mse": 1.0, "kl": 0.1}[output_loss]
    w = default if output_weight is None else output_weight
    for z, f in zip(logits, features, strict=True):
        terms["classification"] += ce(z, y)
        if output_loss == "mse":
            terms["distillation"] += w * ((z - z_bar) ** 2).mean(axis=-1)
        else:
            p = softmax(z_bar, temperature)
            terms["distillation"] += w * temperature**2 * soft_cross_entropy(p, z, temperature)
        terms["feature"] += feature_weight * ((f - f_bar) ** 2 * ((f > 0) | (f_bar > 0))).mean(axis=-1)
    return terms


def eed_grad(
    logits, features, y, *, output_loss="mse", output_weight=None, temperature=3.0, feature_weight=1.0
):
    """B dL/dz_i = softmax(z_i) - y + w 2 (z_i - z_bar) / C                               ("mse")
                 = softmax(z_i) - y + w T (softmax(z_i/T) - softmax(z_bar/T))             ("kl")
    B dL/df_i = w_F 2 (f_i - f_bar) [f_i > 0 or f_bar > 0] / D
    """
    logits, features = floats(logits), floats(features)
    z_bar, f_bar = mean_teacher(logits, features)
    default = {"mse": 1.0, "kl": 0.1}[output_loss]
    w = default if output_weight is None else output_weight
    dlogits, dfeatures = [], []
    for z, f in zip(logits, features, strict=True):
        if output_loss == "mse":
            d_output = 2 * (z - z_bar) / z.shape[-1]
        else:
            d_output = temperature * (softmax(z, temperature) - softmax(z_bar, temperature))
        dlogits.append(ce_grad(z, y) + w * d_output)
        dfeatures.append(feature_weight * 2 * (f - f_bar) * ((f > 0) | (f_bar > 0)) / f.shape[-1])
    return [d / len(d) for d in dlogits], [d / len(d) for d in dfeatures]


def beed_balance(exits, alpha):
    """[alpha^(K-i) for i = 1...K]; refused unless alpha^(K-1) < 2, where exit 1 would lose its labels."""
    if alpha ** (exits - 1) >= 2:
        raise ValueError(f"alpha={alpha}, {exits} exits: must be below {2 ** (1 / (exits - 1)):.4f}")
    return [alpha ** (exits - i) for i in range(1, exits + 1)]


def beed(logits, features, y, *, alpha=1.15, beta=1.6, temperature=3.0, feature_weight=0.1, teacher=None):
    """BEED (ACCV 2022), the later exits weighing more in the teacher, and k_i = K - i:

    classification = sum_i (2 - alpha^k_i) CE(z_i, y)
    distillation   = sum_i alpha^k_i T^2 KL(softmax(z_bar/T) || softmax(z_i/T))
    feature        = w_F sum_i mean_d (f_i - f_bar)^2
    """
    logits, features, terms = floats(logits), floats(features), terms_of(logits)
    z_bar, f_bar = beed_teacher(logits, features, beta) if teacher is None else teacher
    for a, z, f in zip(beed_balance(len(logits), alpha), logits, features, strict=True):
        terms["classification"] += (2 - a) * ce(z, y)
        terms["distillation"] += a * temperature**2 * kl(z_bar, z, temperature)
        terms["feature"] += feature_weight * ((f - f_bar) ** 2).mean(axis=-1)
    return terms


def beed_grad(logits, features, y, *, alpha=1.15, beta=1.6, temperature=3.0, feature_weight=0.1):
    """B dL/dz_i = (2 - alpha^k_i) (softmax(z_i) - y) + alpha^k_i T (softmax(z_i/T) - softmax(z_bar/T))
    B dL/df_i = w_F 2 (f_i - f_bar) / D
    """
    logits, features = floats(logits), floats(features)
    z_bar, f_bar = beed_teacher(logits, features, beta)
    dlogits, dfeatures = [], []
    for a, z, f in zip(beed_balance(len(logits), alpha), logits, features, strict=True):
        d_output = temperature * (softmax(z, temperature) - softmax(z_bar, temperature))
        dlogits.append((2 - a) * ce_grad(z, y) + a * d_output)
        dfeatures.append(feature_weight * 2 * (f - f_bar) / f.shape[-1])
    return [d / len(d) for d in dlogits], [d / len(d) for d in dfeatures]


def dbt(logits, y, *, weight=0.5, temperature=4.0, teacher=None):
    """DBT (Phuong & Lampert, ICCV 2019), the final exit teaching (`teacher`: its logits):

    classification = (1 - C) sum_{i<=K} CE(z_i, y)
    distillation   = C T^2 sum_{i<K} H(softmax(z_K/T), softmax(z_i/T))
    """
    logits, terms = floats(logits), terms_of(logits)
    p = softmax(logits[-1] if teacher is None else teacher, temperature)
    for z in logits:
        terms["classification"] += (1 - weight) * ce(z, y)
    for z in logits[:-1]:
        terms["distillation"] += weight * temperature**2 * soft_cross_entropy(p, z, temperature)
    return terms


def dbt_grad(logits, y, *, weight=0.5, temperature=4.0):
    """B dL/dz_i = (1 - C) (softmax(z_i) - y) + C T (softmax(z_i/T) - softmax(z_K/T)) for i < K;
    B dL/dz_K = (1 - C) (softmax(z_K) - y).
    """
    logits = floats(logits)
    p = softmax(logits[-1], temperature)
    dlogits = [(1 - weight) * ce_grad(z, y) for z in logits]
    for i, z in enumerate(logits[:-1]):
        dlogits[i] += weight * temperature * (softmax(z, temperature) - p)
    return [d / len(d) for d in dlogits], [0.0] * len(logits)


def dbt_next_temperature(logits, temperature, factor=1.05, threshold=0.5):
    """T' = factor T if mean_b max_c softmax(z_K/T) > threshold, else T: the temperature of the next batch."""
    confidence = softmax(logits[-1], temperature).max(axis=-1).mean()
    return temperature * factor if confidence > threshold else temperature


def byot(
    logits, features, y, *, alpha=0.3, temperature=3.0, feature_weight=0.03, t_squared=False, teacher=None
):
    """BYOT (arXiv 1905.08094), the final exit teaching; tau = T^2 if t_squared else 1, p_i = softmax(z_i/T):

    classification = CE(z_K, y) + (1 - alpha) sum_{i<K} CE(z_i, y)
    distillation   = alpha tau sum_{i<K} H(p_K, p_i)
    feature        = lambda sum_{i<K} sum_d (f_i - f_K)^2
    """
    logits, features, terms = floats(logits), floats(features), terms_of(logits)
    z_final, f_final = final_teacher(logits, features) if teacher is None else teacher
    p, tau = softmax(z_final, temperature), temperature**2 if t_squared else 1.0
    terms["classification"] += ce(logits[-1], y)
    for z, f in zip(logits[:-1], features[:-1], strict=True):
        terms["classification"] += (1 - alpha) * ce(z, y)
        terms["distillation"] += alpha * tau * soft_cross_entropy(p, z, temperature)
        terms["feature"] += feature_weight * ((f - f_final) ** 2).sum(axis=-1)
    return terms


def byot_grad(logits, features, y, *, alpha=0.3, temperature=3.0, feature_weight=0.03, t_squared=False):
    """For i < K: B dL/dz_i = (1 - alpha) (softmax(z_i) - y) + alpha tau (p_i - p_K) / T,
    B dL/df_i = 2 lambda (f_i - f_K). For K: B dL/dz_K = softmax(z_K) - y, dL/df_K = 0.
    """
    logits, features = floats(logits), floats(features)
    p, tau = softmax(logits[-1], temperature), temperature**2 if t_squared else 1.0
    dlogits, dfeatures = [], []
    for z, f in zip(logits[:-1], features[:-1], strict=True):
        d_output = tau * (softmax(z, temperature) - p) / temperature
        dlogits.append((1 - alpha) * ce_grad(z, y) + alpha * d_output)
        dfeatures.append(2 * feature_weight * (f - features[-1]))
    dlogits.append(ce_grad(logits[-1], y))
    dfeatures.append(np.zeros_like(features[-1]))
    return [d / len(d) for d in dlogits], [d / len(d) for d in dfeatures]


def init_params(rng, channels, width, classes):
    """Random kernels conv1 (Cin, D), conv2, conv3 (D, D), exit_1, exit_2, final (D, C); biases not zero."""
    params = {}
    for name in CONVS + EXITS:
        rows, columns = channels if name == "conv1" else width, width if name in CONVS else classes
        params[f"{name}/kernel"] = rng.normal(size=(rows, columns)) / np.sqrt(rows)
        params[f"{name}/bias"] = rng.normal(size=columns) * 0.3
    return params


def forward(params, x):
    """h_0 = x (B, H, W, Cin), h_i = relu(h_{i-1} W_i + b_i), f_i = mean_{H,W} h_i, z_i = f_i V_i + c_i.

    Returns (logits, features, cache).
    """
    h, logits, features, cache = np.asarray(x, np.float64), [], [], []
    for conv, exit_ in zip(CONVS, EXITS, strict=True):
        pre = h @ params[f"{conv}/kernel"] + params[f"{conv}/bias"]
        cache.append((h, pre))
        h = np.maximum(pre, 0.0)
        features.append(h.mean(axis=(1, 2)))
        logits.append(features[-1] @ params[f"{exit_}/kernel"] + params[f"{exit_}/bias"])
    return logits, features, cache


def backward(params, cache, dlogits, dfeatures):
    """Chain rule, last exit first, with pre_i = h_{i-1} W_i + b_i and g_i = dh_i [pre_i > 0]:

    dh_i = (df_i + dz_i V_i^T) / HW + g_{i+1} W_{i+1}^T (no second term for the last exit),
    dV_i = f_i^T dz_i, dc_i = sum_b dz_i, dW_i = sum_{b,h,w} h_{i-1}^T g_i, db_i = sum_{b,h,w} g_i.
    """
    grads, dh = {}, 0.0
    for i in reversed(range(len(EXITS))):
        conv, exit_, (h_in, pre) = CONVS[i], EXITS[i], cache[i]
        feature = np.maximum(pre, 0.0).mean(axis=(1, 2))
        grads[f"{exit_}/kernel"] = feature.T @ dlogits[i]
        grads[f"{exit_}/bias"] = dlogits[i].sum(axis=0)
        dfeature = dfeatures[i] + dlogits[i] @ params[f"{exit_}/kernel"].T
        dh = dh + dfeature[:, None, None, :] / (pre.shape[1] * pre.shape[2])
        dpre = dh * (pre > 0)
        grads[f"{conv}/kernel"] = np.einsum("bhwi,bhwo->io", h_in, dpre)
        grads[f"{conv}/bias"] = dpre.sum(axis=(0, 1, 2))
        dh = dpre @ params[f"{conv}/kernel"].T
    return grads


def gradients(params, x, y, objective_grad_fn, l2=0.0, sample_weight=None):
    """d/dparams of (1/B) sum_b w_b l_b + l2 sum_kernels sum W^2 (biases are not decayed; dW gains 2 l2 W).

    `objective_grad_fn(logits, features, y) -> (dlogits, dfeatures)`, of the unweighted mean; row b depends on
    sample b alone, so that w_b multiplies row b. For DBT: `lambda z, f, y: dbt_grad(z, y)`.
    """
    logits, features, cache = forward(params, x)
    dlogits, dfeatures = objective_grad_fn(logits, features, y)
    if sample_weight is not None:
        w = np.asarray(sample_weight, np.float64)[:, None]
        dlogits, dfeatures = [w * d for d in dlogits], [w * d for d in dfeatures]
    grads = backward(params, cache, dlogits, dfeatures)
    return {n: g + 2 * l2 * params[n] if n.endswith("/kernel") else g for n, g in grads.items()}


def sgd_step(params, x, y, objective_grad_fn, learning_rate, l2=0.0, sample_weight=None):
    """p <- p - lr g. Returns the new parameters; `params` is not changed."""
    grads = gradients(params, x, y, objective_grad_fn, l2, sample_weight)
    return {n: p - learning_rate * grads[n] for n, p in params.items()}


def momentum_step(
    params,
    velocity,
    x,
    y,
    objective_grad_fn,
    learning_rate,
    momentum=0.9,
    nesterov=False,
    l2=0.0,
    sample_weight=None,
):
    """v <- m v - lr g; p <- p + v, or p + m v - lr g with Nesterov (Keras's SGD). `velocity=None` is zero.

    Returns (new params, new velocity).
    """
    grads = gradients(params, x, y, objective_grad_fn, l2, sample_weight)
    velocity = velocity or {n: np.zeros_like(p) for n, p in params.items()}
    velocity = {n: momentum * velocity[n] - learning_rate * grads[n] for n in params}
    if nesterov:
        return {n: p + momentum * velocity[n] - learning_rate * grads[n] for n, p in params.items()}, velocity
    return {n: p + velocity[n] for n, p in params.items()}, velocity


# name: (loss(logits, features, y, teacher), gradient(logits, features, y), teacher(logits, features))
OBJECTIVES = {
    "cross_entropy": (
        lambda z, f, y, t: cross_entropy(z, y, weights=[0.5, 1, 2]),
        lambda z, f, y: cross_entropy_grad(z, y, weights=[0.5, 1, 2]),
        lambda z, f: None,
    ),
    "eed_mse": (lambda z, f, y, t: eed(z, f, y, teacher=t), eed_grad, mean_teacher),
    "eed_kl": (
        lambda z, f, y, t: eed(z, f, y, output_loss="kl", teacher=t),
        lambda z, f, y: eed_grad(z, f, y, output_loss="kl"),
        mean_teacher,
    ),
    "beed": (lambda z, f, y, t: beed(z, f, y, teacher=t), beed_grad, beed_teacher),
    "dbt": (lambda z, f, y, t: dbt(z, y, teacher=t[0]), lambda z, f, y: dbt_grad(z, y), final_teacher),
    "byot": (lambda z, f, y, t: byot(z, f, y, teacher=t), byot_grad, final_teacher),
    "byot_t_squared": (
        lambda z, f, y, t: byot(z, f, y, t_squared=True, teacher=t),
        lambda z, f, y: byot_grad(z, f, y, t_squared=True),
        final_teacher,
    ),
}


def deviation(loss, array, gradient, eps=1e-5):
    """max |n - g| / max |g| (max |n| where g = 0), n = (L(a + eps) - L(a - eps)) / 2 eps. Restores array."""
    numeric = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + eps
        above = loss()
        array[index] = kept - eps
        numeric[index] = (above - loss()) / (2 * eps)
        array[index] = kept
    return np.abs(numeric - gradient).max() / (np.abs(gradient).max() or 1.0)


def check_exits(rng, y, loss, grad, teacher):
    """The largest deviation over every exit's logits and features."""
    z, f = list(2 * rng.normal(size=(3, len(y), 4))), list(rng.normal(size=(3, len(y), 5)))
    t, (dlogits, dfeatures) = teacher(z, f), grad(z, f, y)
    pairs = zip(z + f, dlogits + dfeatures, strict=True)
    return max(deviation(lambda: mean_loss(loss(z, f, y, t)), array, g) for array, g in pairs)


def check_params(rng, y, loss, grad, teacher, l2=0.01):
    """The largest deviation over the network's parameters, with sample weights and decay."""
    params, x, w = init_params(rng, 3, 5, 4), rng.normal(size=(len(y), 4, 3, 3)), rng.uniform(0, 2, len(y))
    t, grads = teacher(*forward(params, x)[:2]), gradients(params, x, y, grad, l2, w)

    def composite():
        decay = l2 * sum((p**2).sum() for n, p in params.items() if n.endswith("/kernel"))
        return mean_loss(loss(*forward(params, x)[:2], y, t), w) + decay

    return max(deviation(composite, params[n], grads[n]) for n in params)


if __name__ == "__main__":
    rng = np.random.default_rng(0)  # a seed that puts no ReLU within eps of its kink
    soft = rng.dirichlet(np.ones(4), size=6)
    for name, objective in OBJECTIVES.items():
        for y in (soft.argmax(axis=1), soft):
            deviations = check_exits(rng, y, *objective), check_params(rng, y, *objective)
            print(f"{name:15s} logits and features {deviations[0]:.1e}   parameters {deviations[1]:.1e}")
            assert max(deviations) < 1e-7
