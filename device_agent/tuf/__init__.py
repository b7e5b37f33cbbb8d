"""What the publisher says exists: the device's half of The Update Framework (docs/tuf.md).

`client` keeps the order of the specification's workflow and uses python-tuf's rules; `kept` is what it wrote down,
`web` how it asks, `targets` how a file comes, `child` the short-lived process in which the agent does it, `question` what
is asked there, `lookup` how the supervisor asks it, `watch` when. Only the child and the conformance client import `tuf`.
"""
