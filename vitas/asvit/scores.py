"""As-ViT's scores of a network at initialisation, without training (Chen et al., ICLR 2022, arXiv 2202.11921).

Length distortion: how much the network stretches a circle of inputs; higher is
better. NTK condition number: how unevenly the images share the gradient; lower
is better. Both are of `forward_features`, the mean over the last stage's tokens
before the last norm.

Shape suffixes: B images, T points of the circle, N positions of a layer, I
inputs of a layer, O outputs, P a layer's weights.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from vitas.asvit.genotype import Genotype
from vitas.errors import UserError
from vitas.models import StagedTransformer
from vitas.seeds import stream_seed


@dataclass(frozen=True)
class Scores:
    """The scores of a genotype. length_distortion: higher is better. ntk_condition: lower is better."""

    length_distortion: float
    ntk_condition: float


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """The mean of each score."""
    return Scores(
        math.fsum(one.length_distortion for one in scores) / len(scores),
        math.fsum(one.ntk_condition for one in scores) / len(scores),
    )


def score_once(
    genotype: Genotype,
    image_size: int = 224,
    seed: int = 0,
    index: int = 0,
    batch_size: int = 16,
    points: int = 10,
    images: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Scores:
    """Both scores of a genotype at one initialisation; the result depends on the arguments only.

    seed, index: of the initialisation.
    points: of the circle, from 0 to 2 pi with both ends.
    images: for the NTK, [B, 3, image_size, image_size], normalised. The
        published method takes a batch of training images, the same for every
        network and initialisation; by default, `batch_size` images of Gaussian
        noise are drawn.

    The other defaults are the published settings. As in the released
    implementation, the circle is in the plane of two Gaussian images, made
    orthonormal. Weights, circle and noise do not depend on the genotype, so
    that genotypes are compared on equal inputs; they are drawn on the CPU, so
    that all devices score the same network.

    Raises `UserError` for an image size that does not fit, for fewer than two
    images, for images of another size and for a circle without points.
    """
    genotype.check_image_size(image_size)
    if points < 1:
        raise UserError(f"points: found {points}; a circle needs at least 1")
    found = batch_size if images is None else len(images)
    if found < 2:
        raise UserError(f"batch_size: found {found}; a condition number needs at least 2 images")
    if images is None:
        generator = torch.Generator().manual_seed(stream_seed(seed, "score images", index))
        images = torch.randn(batch_size, 3, image_size, image_size, generator=generator)
    elif images.shape[1:] != (3, image_size, image_size):
        raise UserError(f"images: found {list(images.shape)}; they must be [images, 3, {image_size}, {image_size}]")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, "score weights", index))
        # Neither score reads the classifier.
        network = StagedTransformer(genotype, num_classes=1, image_size=image_size)
    network = network.to(device)
    basis = circle_basis(image_size, stream_seed(seed, "score circle", index))
    thetas = torch.linspace(0, 2 * math.pi, points)
    return Scores(
        length_distortion(network, basis.to(device), thetas.to(device)),
        ntk_condition_number(network, images.to(device)),
    )


def circle_basis(image_size: int, seed: int) -> Tensor:
    """Two random orthonormal images [2, 3, image_size, image_size] that span the plane of a circle."""
    draws = torch.randn(3 * image_size**2, 2, generator=torch.Generator().manual_seed(seed))
    basis: Tensor = torch.linalg.qr(draws).Q.T
    return basis.reshape(2, 3, image_size, image_size)


def length_distortion(network: StagedTransformer, basis: Tensor, thetas: Tensor) -> float:
    """The sum over theta of || d features / d theta || on a circle of images, without LayerNorms.

    network: is not changed.
    basis: two images, [2, 3, image_size, image_size] or flattened; the circle
        is cos(theta) basis[0] + sin(theta) basis[1].
    thetas: points of the circle in radians [T].

    All points take one forward-mode pass in evaluation mode, which costs as
    much as a few forward passes. The definition is from arXiv 2202.11921; the
    released implementation leaves out norms and sums over points, as here.
    """
    network = _with_shared_weights(network).eval()
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, nn.Identity())
    first, second = basis.reshape(2, 1, 3, network.image_size, network.image_size)
    cos, sin = (f(thetas).reshape(-1, 1, 1, 1) for f in (torch.cos, torch.sin))
    with torch.no_grad(), warnings.catch_warnings(), forward_ad.dual_level(), _ForwardModeAttention():
        # The first use of forward mode imports a part of torch that uses deprecated parts of torch.
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
        images = forward_ad.make_dual(cos * first + sin * second, cos * second - sin * first)
        speed_TO = forward_ad.unpack_dual(network.forward_features(images)).tangent
    return float(speed_TO.double().norm(dim=1).sum())


class _ForwardModeAttention(TorchFunctionMode):
    """Gives `F.scaled_dot_product_attention` a forward derivative, which its fused kernels lack.

    The alternative, attention in plain operations, holds several matrices of
    tokens by tokens at once; it takes four times as long on a CPU.

    With S the scaled products, P their softmax and dots for derivatives,

        d(P v) = P v. + P o (S. - rowsum(P o S.)) v   where  S. = scale (q. k^T + q k.^T)

    The last term is the *backward* pass of another attention, with the same P,
    the values [k | k.] and the output gradient [q. | q]. So one fused forward
    pass of the values [k | k. | v | v.] and one fused backward pass give all terms.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return _attention_with_derivative(*args, **(kwargs or {}))


def _attention_with_derivative(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    dims = q.shape[-1]
    scale = dims**-0.5 if scale is None else scale
    (q, dq), (k, dk), (v, dv) = (_dual(t) for t in (q, k, v))
    zeros = torch.zeros_like(q)
    with torch.enable_grad():
        queries = torch.cat([q, zeros, zeros, zeros], dim=-1).requires_grad_()
        # v stands where the queries are zero: it does not change the products, but the backward pass multiplies by it.
        keys = torch.cat([k, v, zeros, zeros], dim=-1)
        values = torch.cat([k, dk, v, dv], dim=-1)
        out = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
        (gradient,) = torch.autograd.grad(out, queries, torch.cat([dq, q, zeros, zeros], dim=-1))
    primal, through_values = out.detach()[..., 2 * dims :].split(dims, dim=-1)
    dual: Tensor = forward_ad.make_dual(primal, through_values + gradient[..., dims : 2 * dims])
    return dual


def _dual(tensor: Tensor) -> tuple[Tensor, Tensor]:
    primal, tangent = forward_ad.unpack_dual(tensor)
    return primal, torch.zeros_like(primal) if tangent is None else tangent


def ntk_condition_number(network: StagedTransformer, images: Tensor) -> float:
    """The NTK's condition number: its largest eigenvalue over its smallest; infinite if the smallest is not positive.

    For the arguments see `ntk_gram`. From arXiv 2202.11921, after Chen et al.,
    "Neural Architecture Search on ImageNet in Four GPU Hours", ICLR 2021.
    """
    eigenvalues = ntk_eigenvalues(network, images)
    smallest, largest = eigenvalues[0].item(), eigenvalues[-1].item()
    return largest / smallest if smallest > 0 else math.inf


def ntk_eigenvalues(network: StagedTransformer, images: Tensor) -> Tensor:
    """The eigenvalues of `ntk_gram`, ascending, float64 [B]."""
    eigenvalues: Tensor = torch.linalg.eigvalsh(ntk_gram(network, images))
    return eigenvalues


def ntk_gram(network: StagedTransformer, images: Tensor) -> Tensor:
    """The NTK: the Gram matrix of the per-image gradients of the summed features, float64 [B, B] on the CPU.

    network: is not changed. Its layers with weights are linear layers,
        ungrouped convolutions and LayerNorms.
    images: [B, 3, image_size, image_size]; B is at least 1.

    The gradients are of every parameter whose name contains `weight`, as
    released; the classifier and the last norm have none. It takes one forward
    and one backward pass in evaluation mode: a layer's per-image gradients are
    computed from its input and the gradient of its output, and dropped once
    their products are added.

    The products are summed in float64: they are sums of millions of terms, and
    the condition number divides by the smallest eigenvalue, which is hundreds
    of times smaller than the largest, so their errors would show there.
    Raises `TypeError` for a layer of another kind.
    """
    network = _with_shared_weights(network).eval()
    gram_BB = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)

    def follow(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            gradients_BP = _PER_IMAGE[type(layer)](layer, inputs[0].detach(), gradient).flatten(1)
            # In parts, so that the float64 copies stay in the processor's cache.
            for part in gradients_BP.split(2**14, dim=1):
                part = part.double()
                gram_BB.addmm_(part, part.T)

        # No weight requires a gradient, so the output of the first layer must, to start the graph.
        (output if output.requires_grad else output.requires_grad_()).register_hook(add)

    for layer in network.modules():
        if any("weight" in name for name, _ in layer.named_parameters(recurse=False)):
            if type(layer) not in _PER_IMAGE:
                raise TypeError(f"per-image gradients are not implemented for {type(layer).__name__}")
            layer.register_forward_hook(follow)
    with torch.enable_grad():
        network.forward_features(images).sum().backward()
    return gram_BB.cpu()


def _linear_gradients(layer: nn.Linear, x: Tensor, gradient: Tensor) -> Tensor:
    return gradient.flatten(1, -2).mT @ x.flatten(1, -2)


def _convolution_gradients(layer: nn.Conv2d, x: Tensor, gradient: Tensor) -> Tensor:
    patches_BIN = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]  # no padding by name
    return gradient.flatten(2) @ patches_BIN.mT


def _norm_gradients(layer: nn.LayerNorm, x: Tensor, gradient: Tensor) -> Tensor:
    return (F.layer_norm(x, layer.normalized_shape, eps=layer.eps) * gradient).flatten(1, -2).sum(dim=1)


# For each kind of layer: (layer, input, gradient of the output) -> the gradients of its weight for each image.
_PER_IMAGE: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Tensor]] = {
    nn.Linear: _linear_gradients,
    nn.Conv2d: _convolution_gradients,
    nn.LayerNorm: _norm_gradients,
}


def _with_shared_weights(network: StagedTransformer) -> StagedTransformer:
    """A copy of the modules with the same weights, which require no gradient; the copy may be changed."""
    return copy.deepcopy(network, {id(t): t.detach() for t in chain(network.parameters(), network.buffers())})
