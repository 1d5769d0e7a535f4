"""lenet: LeNet-5 as it is taught today, from images of 28 x 28 pixels to logits.

    C1: 6 windows of 5 x 5, tanh     S2: means of 2 x 2     C3: 16 windows of 5 x 5, tanh     S4: means of 2 x 2
    C5: 120 windows of 5 x 5, tanh   F6: 84, tanh           z: a logit for each class

Of the paper's network it leaves out the table of which maps C3 sees, the factors of S2 and S4, and the distances to
drawn characters at the end: it has 61,706 parameters for 60,840.

Source: LeCun et al., 'Gradient-based learning applied to document recognition', Proc. IEEE 86, 1998, section II.
"""

from bpref.compose import serial
from bpref.layer import Layer
from bpref.rules.activation.tanh import tanh
from bpref.rules.convolution.convolution import convolution
from bpref.rules.geometry.flatten import flatten
from bpref.rules.linear.linear import linear
from bpref.rules.pooling.average_pool import average_pool


def lenet(classes: int = 10) -> Layer:
    """The network: images `(N, 28, 28, C)` to logits `(N, classes)`.

    Raises:
      ValueError: `classes` is not a positive integer; images are too small for C5.

    Example:
      >>> network = bpref.lenet()
      >>> params = network.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    """
    return serial(
        C1=serial(convolution(6, (5, 5)), tanh()),
        S2=average_pool((2, 2)),
        C3=serial(convolution(16, (5, 5), padding="valid"), tanh()),
        S4=average_pool((2, 2)),
        C5=serial(convolution(120, (5, 5), padding="valid"), tanh(), flatten()),
        F6=serial(linear(84), tanh()),
        head=linear(classes),
    )
