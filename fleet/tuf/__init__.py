"""The repository side of The Update Framework (docs/tuf.md).

`ring` keeps a publisher's private keys, `documents` holds every rule about metadata and touches neither disk nor
network, `home` is the publisher's folder (offline roles), `online` the fleet's (snapshot and timestamp).
"""
