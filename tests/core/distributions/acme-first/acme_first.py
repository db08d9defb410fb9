"""Never imported: another distribution offers a variant of the same name."""

raise AssertionError("a name that is offered twice must import neither module")
