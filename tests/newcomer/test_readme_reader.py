"""The reader of README.md finds every command, or a new one would go untested."""

import readme
from readme import Command

PAGE = """
Take `pip install
'.[agent]'` or `edgekit run A
B`; not `edgekit/` nor `litert`.

```
edgekit one --flag    # why
edgekit two \\
    --more 'a # b'

export A=b
```
```toml
[model]
```
```
$ edgekit three
edgekit is what it prints
$ curl -s x
{}
```
```
some output
edgekit in an output
```
"""


def test_blocks_sessions_and_sentences_give_their_commands_and_outputs_none() -> None:
    blocks = ["edgekit one --flag", "edgekit two --more 'a # b'", "export A=b", "edgekit three", "curl -s x"]
    expected = [
        *(Command(line, is_block=True) for line in blocks),
        Command("edgekit run A B", is_block=False),
    ]
    assert readme.commands(PAGE) == expected
    assert readme.installs(PAGE) == ["pip install '.[agent]'"]
    assert readme.projects(PAGE) == ["[model]\n"]


def test_the_page_has_commands_installs_and_a_project_file() -> None:
    page = readme.text()
    assert len(readme.commands(page)) > 30
    assert len(readme.installs(page)) > 5
    assert len(readme.projects(page)) == 1
