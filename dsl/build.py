"""Lark trees to the syntax tree. One method per grammar rule, named like it; no recursion, so depth is no matter."""

from __future__ import annotations

from typing import Any

from lark import Token, v_args
from lark.tree import Meta
from lark.visitors import Transformer_NonRecursive

from tersor.compiler.diagnostics import Source, Span
from tersor.dsl import syntax
from tersor.dsl.tokens import span_of, unescape

Parts = list[Any]


@v_args(meta=True)
class Build(Transformer_NonRecursive[Token, Any]):
    """Turns the tree of one statement into its dataclass."""

    def __init__(self, source: Source) -> None:
        super().__init__(visit_tokens=False)
        self.source = source

    def _span(self, meta: Meta) -> Span:
        return Span(self.source, meta.start_pos, meta.end_pos)

    def _word(self, token: Token) -> syntax.Word:
        return syntax.Word(str(token), span_of(self.source, token))

    def _text(self, token: Token) -> syntax.Text:
        return syntax.Text(unescape(token), span_of(self.source, token))

    def _number(self, token: Token, unit: Token | None = None) -> syntax.Number:
        span = span_of(self.source, token)
        if unit is None:
            return syntax.Number(str(token), None, span)
        named = self._word(unit)
        return syntax.Number(str(token), named, Span(self.source, span.start, named.span.end))

    # statements

    def budget(self, meta: Meta, parts: Parts) -> syntax.Budget:
        quantity, metric, operator, limit, at = parts
        named = None if metric is None else self._text(metric)
        return syntax.Budget(self._word(quantity), named, self._word(operator), limit, at or (), self._span(meta))

    def amount(self, meta: Meta, parts: Parts) -> syntax.Number:
        return self._number(*parts)

    def at(self, meta: Meta, parts: Parts) -> tuple[tuple[syntax.Word, syntax.Number], ...]:
        return tuple(parts)

    def dimension(self, meta: Meta, parts: Parts) -> tuple[syntax.Word, syntax.Number]:
        return self._word(parts[0]), self._number(parts[1])

    def objective(self, meta: Meta, parts: Parts) -> syntax.Objective:
        direction, quantity, metric = parts
        named = None if metric is None else self._text(metric)
        return syntax.Objective(self._word(direction), self._word(quantity), named, self._span(meta))

    def let(self, meta: Meta, parts: Parts) -> syntax.Let:
        return syntax.Let(self._word(parts[0]), parts[1], self._span(meta))

    def rule(self, meta: Meta, parts: Parts) -> syntax.Rule:
        return syntax.Rule(parts[0], tuple(parts[1:]), self._span(meta))

    def keep(self, meta: Meta, parts: Parts) -> syntax.Rule:
        return syntax.Rule(parts[0], (), self._span(meta))

    # selectors

    def selector(self, meta: Meta, parts: Parts) -> syntax.Selector:
        return parts[0] if len(parts) == 1 else syntax.Either(tuple(parts), self._span(meta))

    def conjunction(self, meta: Meta, parts: Parts) -> syntax.Selector:
        return parts[0] if len(parts) == 1 else syntax.Both(tuple(parts), self._span(meta))

    def negation(self, meta: Meta, parts: Parts) -> syntax.Selector:
        return syntax.Negation(parts[0], self._span(meta))

    def named(self, meta: Meta, parts: Parts) -> syntax.Selector:
        return syntax.Named(self._word(parts[0]), self._span(meta))

    def everything(self, meta: Meta, parts: Parts) -> syntax.Selector:
        return syntax.Everything(self._span(meta))

    def role(self, meta: Meta, parts: Parts) -> syntax.Selector:
        token = parts[0]
        return syntax.Role(unescape(token) if token.type == "STRING" else str(token), self._span(meta))

    def path(self, meta: Meta, parts: Parts) -> syntax.Selector:
        return syntax.Path(unescape(parts[0]), self._span(meta))

    def where(self, meta: Meta, parts: Parts) -> syntax.Selector:
        subject, operator, operand = parts
        return syntax.Where(subject, str(operator), operand, self._span(meta))

    def operand(self, meta: Meta, parts: Parts) -> syntax.Word | syntax.Text | syntax.Number:
        match parts[0].type:
            case "NUMBER":
                return self._number(*parts)
            case "STRING":
                return self._text(parts[0])
            case _:
                return self._word(parts[0])

    # what may be done

    def option(self, meta: Meta, parts: Parts) -> syntax.Option:
        return syntax.Option(tuple(parts), self._span(meta))

    def use(self, meta: Meta, parts: Parts) -> syntax.Use:
        arguments = tuple(part for part in parts[1:] if part is not None)
        return syntax.Use(self._word(parts[0]), arguments, self._span(meta))

    def argument(self, meta: Meta, parts: Parts) -> syntax.Argument:
        return syntax.Argument(parts[0], parts[1])

    def set(self, meta: Meta, parts: Parts) -> syntax.Set:
        return syntax.Set(tuple(parts), self._span(meta))

    def range(self, meta: Meta, parts: Parts) -> syntax.Range:
        return syntax.Range(parts[0], parts[1], parts[2], self._span(meta))

    def number(self, meta: Meta, parts: Parts) -> syntax.Number:
        return self._number(parts[0])

    def percent(self, meta: Meta, parts: Parts) -> syntax.Number:
        return self._number(parts[0], parts[1])

    def word(self, meta: Meta, parts: Parts) -> syntax.Word:
        return self._word(parts[0])

    def name(self, meta: Meta, parts: Parts) -> syntax.Word:
        return self._word(parts[0])

    def text(self, meta: Meta, parts: Parts) -> syntax.Text:
        return self._text(parts[0])

    def call(self, meta: Meta, parts: Parts) -> syntax.Call:
        arguments = tuple(part for part in parts[1:] if part is not None)
        return syntax.Call(self._word(parts[0]), arguments, self._span(meta))

    # training back

    def recover(self, meta: Meta, parts: Parts) -> syntax.Recover:
        return syntax.Recover(tuple(parts), self._span(meta))

    def teacher(self, meta: Meta, parts: Parts) -> syntax.Teacher:
        token = parts[0]
        return syntax.Teacher(self._text(token) if token.type == "STRING" else self._word(token), self._span(meta))

    def loss(self, meta: Meta, parts: Parts) -> syntax.Loss:
        return syntax.Loss(tuple(parts), self._span(meta))

    def term(self, meta: Meta, parts: Parts) -> syntax.Term:
        return syntax.Term(None if parts[0] is None else self._number(parts[0]), parts[1])

    def setting(self, meta: Meta, parts: Parts) -> syntax.Setting:
        return syntax.Setting(self._word(parts[0]), parts[1], self._span(meta))
