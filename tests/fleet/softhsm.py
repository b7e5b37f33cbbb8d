"""SoftHSM2 (Debian's softhsm2): PKCS#11 tokens in a folder, through the same library calls as real ones."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_PLACES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so")  # fmt: skip
LIBRARY = next((place for place in _PLACES if Path(place).exists()), "")
PIN, SO_PIN = "4711-secret-pin", "so-pin-1"
needed = pytest.mark.skipif(
    not LIBRARY or shutil.which("softhsm2-util") is None, reason="SoftHSM2 is not installed (softhsm2)"
)


class Tokens:
    """A folder of tokens. `library` is a copy: each has its own state inside one process, where tests share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "tokens").mkdir()
        self.config = folder / "softhsm2.conf"
        self.config.write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
        self.library = Path(shutil.copy(LIBRARY, folder / "libsofthsm2.so"))

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SOFTHSM2_CONF": str(self.config)}

    def add(self, label: str = "fleet") -> None:
        self._run("--init-token", "--free", "--label", label, "--so-pin", SO_PIN, "--pin", PIN)

    def change_pin(self, new: str, label: str = "fleet") -> None:
        """As its security officer would; sessions that were open are worth nothing then."""
        import pkcs11

        library = pkcs11.lib(str(self.library))
        library.reinitialize()
        with library.get_token(token_label=label).open(rw=True, so_pin=SO_PIN) as session:
            session.init_pin(new)

    def _run(self, *words: str) -> None:
        done = subprocess.run(
            ["softhsm2-util", *words], env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def uri(self, rest: str = "token=fleet;object=ca") -> str:
        return f"pkcs11:{rest}?module-path={self.library}"

    def make_key(self, label: str, *, key_id: bytes, token: str = "fleet", kind: str = "secp256r1") -> None:
        """As an owner would with the tools of the token."""
        import pkcs11
        from pkcs11.util.ec import encode_named_curve_parameters

        with (
            pkcs11.lib(str(self.library)).get_token(token_label=token).open(rw=True, user_pin=PIN) as session
        ):
            curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters(kind)}
            made = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
            made.generate_keypair(id=key_id, label=label, store=True)
