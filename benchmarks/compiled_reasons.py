"""Why a rule, or a model, takes more by hand on a TPU or a GPU than by autodiff of its forward, where it does."""

_ONE_PROGRAM = (
    "Forward and backward are one program here, in which XLA makes the output anew from x inside of autodiff's "
    "backward, by one kernel. A backward by itself takes the same bytes both ways"
)
_ON_CHIP = (
    "The logits are made again, twice the flops, so that they need no memory. At this length they would have stayed on "
    "the chip: 128 MB of it"
)
_ONE_MORE = "One more array of the input's size, or smaller, is alive, at fewer bytes accessed"
_NOT_READ = "Not looked into yet: the figures are known, the program has not been read"

REASONS: dict[str, str] = {
    "softmax": _ONE_PROGRAM,
    "gumbel_softmax": _ONE_PROGRAM,
    "rms_norm": "XLA writes what dgamma sums beside y and dx, in one operation that reads x and dy once: less traffic, "
    "and one array more",
    "log_cosh": "tanh is made once and read again, in place of both inputs: 0.75 of the traffic, and one "
    "array more",
    "weight_norm_linear": "The parts of a product that was split are added up twice, by two operations, where "
    "autodiff's second one reads the first one's sum",
    "qr": "Q enters two products, which XLA makes one of twice the width, and takes apart again",
    "eigh": _ONE_MORE,
    "dot_product_attention": "On the H100 dy V^T is scheduled before the forward is done, since both are one program "
    "here: one more array of the logits' size is alive, at fewer bytes accessed",
    "multi_head_attention": "It has the attention of `dot_product_attention`",
    "attention_with_log_sum_exp": _ON_CHIP,
    "blockwise_attention": _ON_CHIP,
    "latent_attention": _ON_CHIP,
    "block_sparse_attention": _ON_CHIP,
    "flex_attention": _ON_CHIP,
    "native_sparse_attention": _ON_CHIP,
    "path_attention": _NOT_READ,
    "triangle_attention": "At 48 nodes the logits are one block, made again of more numbers than they are: 0.91 of the "
    "temp memory",
    "roi_align": _ONE_MORE,
    "spherical_harmonics": _ONE_MORE,
    "merge_attention": _NOT_READ,
    "hadamard": _NOT_READ,
    "alpha_compositing": _NOT_READ,
    "cholesky": "L leaves the factorisation by columns, and its copy by rows is a kernel of its own; autodiff's mask "
    "is made beside it. Two thirds of the temp memory",
    "crf": "One array of log-probabilities is moved out of the chip and back between both loops, though there is "
    "room: 0.57 of the cycles",
    "ctc": "The logits are fetched a second time, for their gradient: half of the cycles and less temp memory",
    "grouped_matmul": "No array between operations lies in the device's memory: the compiler reserves it",
    "info_nce": "A normalised input, 0.25 MB, is alive during the products of the backward, where autodiff divides "
    "again: 0.93 of the bytes accessed",
    "lenet": "The gradient of C5's filters is scheduled last, and what it reads stays alive",
    "matrix_exponential": "Products that share a factor are made one of twice the width, by copies, and taken "
    "apart again: 0.37 of the temp memory",
    "qk_norm": "dy is read from memory by the first operation that needs it, and fetched for the second: 0.89 of the "
    "cycles",
    "reduce_prod": "The forward multiplies in one pass over x, and the backward makes a tree of products; in one "
    "program autodiff's tree gives y as well",
    "resize": "One input is fetched for the next run while this one ends: dy, and with autodiff the smaller x. All "
    "else is as much",
    "selective_scan": "delta is fetched a second time, for the slope of its softplus",
    "least_squares": _NOT_READ,
    "pseudo_inverse": _NOT_READ,
    "expert_permute": _NOT_READ,
    "sigmoid_router": _NOT_READ,
    "segment_prod": _NOT_READ,
    "spectral_norm_linear": "No array between operations lies in the device's memory: the compiler "
    "reserves it, at 0.78 of the cycles",
    "wasserstein_critic": "The cotangents of real, generated and mixed examples are cut out of one product by copies; "
    "autodiff's are used where they lie. Less temp memory",
}  # fmt: skip
"""By name. A test holds them to be those that the figures show, no more and no fewer."""
