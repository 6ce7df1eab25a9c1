"""The captured model: one graph in two views, how it is called, and what in it can be rewritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from tersor.compiler.callable import CompiledModule
from tersor.compiler.equality import disagreement
from tersor.compiler.errors import CompilerBug
from tersor.compiler.signature import Signature
from tersor.compiler.site import Site


@dataclass(frozen=True)
class Program:
    """`module` is the modular view (leaf modules called by path, the rest ATen): what is rewritten and run. `raw` is
    the same graph before lifting, for analysis; both hold the same parameters. `example` are inputs the graph was
    made from.
    """

    module: fx.GraphModule
    raw: fx.GraphModule
    signature: Signature
    sites: tuple[Site, ...]
    example: Mapping[str, Tensor] = field(repr=False)
    notes: tuple[str, ...] = ()

    def callable(self) -> CompiledModule:
        """The modular view with the original calling convention; shares its modules with this program."""
        return CompiledModule(self.module, self.signature)

    def verify(self, reference: nn.Module | None = None) -> None:
        """Check what every pass must keep: a well-formed graph, flat outputs, and, given a reference, equal results
        in eval mode at several shapes. CompilerBug otherwise."""
        verify_graph(self.module, self.signature)
        if reference is None:
            return
        ours = self.callable()
        modes = [(m, m.training) for root in (reference, ours) for m in root.modules()]
        try:
            found = disagreement(ours.eval(), reference.eval(), self.example, self.signature.limits)
        finally:
            for module, training in modes:
                module.training = training
        if found is not None:
            raise CompilerBug(f"the graph and the reference disagree {found}")


def verify_graph(module: fx.GraphModule, signature: Signature) -> None:
    """The form every graph of ours has; CompilerBug when it does not."""
    module.graph.lint()
    placeholders = tuple(n.target for n in module.graph.find_nodes(op="placeholder"))
    if placeholders != signature.names:
        raise CompilerBug(f"the graph takes {placeholders}, the signature {signature.names}")
    for node in module.graph.find_nodes(op="call_module"):
        try:
            module.get_submodule(node.target)
        except AttributeError:
            raise CompilerBug(f"the graph calls {node.target}, which does not exist") from None
    (output,) = module.graph.find_nodes(op="output")
    if not isinstance(output.args[0], tuple) or not all(isinstance(n, fx.Node) for n in output.args[0]):
        raise CompilerBug("the graph does not return a flat tuple of tensors")
