"""The primitive operations by what they do to the tokens of a tensor; names as in the schema, without the underscore of in-place."""

# The same values in the same order; only the shape, the memory or the type differs.
SAME = frozenset({
    "view", "_unsafe_view", "_reshape_alias", "clone", "alias", "detach", "unsqueeze", "squeeze", "lift_fresh", "expand", "dropout",
    "_to_copy", "slice",
})  # fmt: skip

# Values move but do not change: these can be replayed on column numbers.
LAYOUT = SAME | {
    "t", "transpose", "permute", "select", "split", "split_with_sizes", "unbind", "cat", "stack", "repeat", "index_select", "index",
    "as_strided", "flip", "roll", "unfold", "repeat_interleave",
}  # fmt: skip

PRODUCTS = frozenset({
    "mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "mkldnn_linear", "_linear_pointwise",
})  # fmt: skip

NONLINEAR = frozenset({
    "silu", "gelu", "relu", "sigmoid", "tanh", "erf", "pow", "elu", "leaky_relu", "hardswish", "hardsigmoid", "hardtanh", "mish",
    "softplus", "exp", "square", "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "log_sigmoid_forward", "threshold",
    "_prelu_kernel", "abs", "opaque",
})  # fmt: skip

# Each output value depends on the values of its own token alone (as long as the tokens stay in their axes, which their number tells).
TOKENWISE = SAME | NONLINEAR | {
    "native_layer_norm", "rsqrt", "mean", "var", "var_mean", "rms_norm", "_fused_rms_norm", "sqrt", "source", "mul", "add", "sub",
    "div", "neg", "where", "addcmul", "rsub", "reciprocal", "masked_fill", "lerp", "split", "split_with_sizes", "cat", "write",
    "index_add", "transpose", "permute",
}  # fmt: skip
