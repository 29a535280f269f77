"""A command that lists by itself and acts with a verb: `failures`, `failures retry APP ...`."""

from __future__ import annotations

from typing import Final

import click

__all__ = ["VerbGroup"]

#: The subcommand that is meant where no verb is given. Its first argument is APP.
_LIST: Final = "list"


class VerbGroup(click.Group):
    """A group whose subcommand `list` needs no name. Options may stand before a verb."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        word = self._first_argument(ctx, args)
        if word in self.commands:
            rest = list(args)
            rest.remove(word)
            return super().parse_args(ctx, [word, *rest])
        if set(args) & set(ctx.help_option_names):
            return super().parse_args(ctx, args)
        return super().parse_args(ctx, [_LIST, *args])

    def _first_argument(self, ctx: click.Context, args: list[str]) -> str:
        """Return the first word that is neither an option nor an option's value."""
        parser = self.commands[_LIST].make_parser(ctx)
        parser.ignore_unknown_options = True
        try:
            values, _, _ = parser.parse_args(args=list(args))
        except click.UsageError:
            return ""  # the command itself will say so
        word = values.get("app")
        return word if isinstance(word, str) else ""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs: what lists has no name of its own."""
        return [name for name in super().list_commands(ctx) if name != _LIST]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of the list, which are this command's own, and the verbs."""
        click.Command.format_options(self.commands[_LIST], ctx, formatter)
        self.format_commands(ctx, formatter)
