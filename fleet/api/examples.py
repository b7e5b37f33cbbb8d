"""An example of each body and answer of `/api/v1`, for its description: one fleet on one morning."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from edgekit.wire.commands import SelfTest, SelfTested, Tested
from edgekit.wire.enrolment import (
    FORMAT,
    BrokerAddress,
    EnrolAnswer,
    EnrolmentFile,
    EnrolRequest,
    RenewRequest,
)
from fleet import api
from fleet.audit_entry import Entry
from fleet.terminal import MadeTerminal, NewTerminal

_AT = datetime(2026, 11, 27, 8, 30, tzinfo=UTC)
_LATER = datetime(2026, 11, 29, 8, 30, tzinfo=UTC)
_SHA, _OTHER_SHA = "9f2c41d07a" + "5" * 54, "e31b88aa02" + "c" * 54
_KEY_ID, _KEY = "1b0e6c0d5a7f4e21", "a3" * 32
_URL = "https://fleet.example.com"
_PEM = "-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----\n"
_CSR = "-----BEGIN CERTIFICATE REQUEST-----\n…\n-----END CERTIFICATE REQUEST-----\n"
_LABELS = {"site": "lab", "floor": "2"}
_SELECTOR = "site=lab and profile=raspberry-pi-5"
_GATES = ("error_rate < 1%", "latency_p95 <= 1.1 * control")
_TELEMETRY = api.Telemetry(windows=96, requests=48210, errors=12, infer_ms_p50=4.1, infer_ms_p95=6.8)
_DEPLOYMENT = api.DeploymentView(
    should_run="digits@1.4.2",
    should_digest=_SHA,
    runs="digits@1.4.2",
    runs_digest=_SHA,
    version="1.4.2",
    telemetry=_TELEMETRY,
    state="idle",
    because="rollout r3",
)
_DEVICE = api.DeviceView(
    device="lab-07",
    profile="raspberry-pi-5",
    labels=_LABELS,
    enrolled=True,
    online=True,
    is_duplicate=False,
    agent_version="0.1.0",
    last_seen=_AT,
    order_counter=12,
    reported_counter=12,
    refused="",
    deployments={"digits": _DEPLOYMENT},
    telemetry=_TELEMETRY,
    tag="77c1f0a2b4d6e8090a1b2c3d4e5f6071",
)
_BUNDLE = api.BundleView(
    "digits", "1.4.2", "raspberry-pi-5", _SHA, 8_410_112, "onnxruntime >=1.20", _AT, has_evidence=True
)
_MEMBER = api.MemberView("lab-07", "raspberry-pi-5", 1, "succeeded", "", "digits@1.4.1")
_ROLLOUT = api.RolloutView(
    id="r3",
    release="digits@1.4.2",
    deployment="digits",
    to=_SELECTOR,
    status="running",
    reason="",
    stage=2,
    stages=("24 devices", "50 %", "all devices"),
    counts={"succeeded": 24, "fetching": 3, "pending": 173},
    gates=(api.GateView("error_rate < 1%", "satisfied", "0.2 % of 12,400 requests failed; at most 1 %"),),
    created=_AT,
    soak_ends=None,
    finish_by=_LATER,
    tag="0f6b1d2c3a495867a0b1c2d3e4f50617",
    members=(_MEMBER,),
)
_PLAN = api.Plan(
    release="digits@1.4.2",
    deployment="digits",
    eligible={"raspberry-pi-5": ("lab-07", "lab-08")},
    ineligible=(api.Ineligible("lab-09", "has not enrolled yet"),),
    stages=("1 device", "all devices"),
    gates=("errors per accepted request stay below 1 %",),
    notes=("each stage soaks 30m once its reachable devices have settled",),
)
_FILE = EnrolmentFile(
    format=FORMAT,
    fleet="5d0c2f9e",
    device="lab-07",
    token="eke_…",  # noqa: S106  # an example
    enrol_url=f"{_URL}/v1/enrol",
    artifact_url=f"{_URL}/artifacts",
    allowed_hosts=("fleet.example.com",),
    broker=BrokerAddress("fleet.example.com", 8883, tls=True),
    order_keys={_KEY_ID: _KEY},
    tuf_root='{"signatures": [], "signed": {"_type": "root"}}',
    metadata_url=f"{_URL}/tuf",
    deployments=("digits",),
    labels=_LABELS,
    ca=_PEM,
)
_ARM_A = api.ArmView("digits@1.4.1", 0.5, 40, 40, 38, 0.412, 0.002)
_ARM_B = api.ArmView("digits@1.4.2", 0.5, 41, 40, 39, 0.447, 0.002)
_PUBLIC_KEY = api.PublicKey(_KEY_ID, {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": _KEY}})
_ALL = (
    api.Whoami("user:ada", "operator", "site=lab"),
    api.NewToken("ci", "publisher", expires="90d"),
    api.MadeToken("ci", "ekt_…", _URL, _PEM),
    api.TokenView("ci", "publisher", "", "good", _AT, "user:ada", _LATER, _AT, "192.0.2.7"),
    api.NewUser("bo", "a long phrase that nobody else uses", "operator", "site=lab", "365d"),
    api.UserChange(role="viewer"),
    api.NewPassword("another long phrase of their own"),
    api.UserView("bo", "operator", "site=lab", _AT, "user:ada", None, _AT, "192.0.2.8", "password", "good", "", "1b2c"),
    api.AuditVerdict(1204, 1204, 1190, 14, ()),
    api.ErrorAnswer(api.ErrorBody("not-found", "there is no device 'lab-70' in this fleet")),
    api.Reason("replaced by a newer board"),
    api.Done("lab-07", is_changed=True),
    api.Changed("bo"),
    api.NewDevice("lab-07", ("digits",), _LABELS, "7d"),
    api.NewBatch(200, ("digits",), {"site": "lab"}, "30d", ("lab-07", "lab-08"), needs_approval=True),
    api.BatchView(
        "b2", "open", _AT, "user:ada", _LATER, 200, 120, 3, 1, needs_approval=True, listed=200, labels={"site": "lab"},
        deployments=("digits",),
    ),
    api.Waiting("lab-08", "raspberry-pi-5", _SHA, _AT, _LABELS),
    api.NewLabels({"floor": "3"}, ("old",)),
    api.Replacement("7d"),
    api.Retry(("lab-07",)),
    api.RetryDevice(despite_budget=True),
    api.Retried(("lab-07",)),
    api.NewDeployment("digits"),
    api.NewCommand(SelfTest("digits"), "1h"),
    api.CommandView(
        "4f0c6c1e8a3b4b86", "lab-07", SelfTest("digits"), "done", "", _AT, "user:ada", _LATER, _AT,
        SelfTested((Tested(_SHA, True, "digits", "", 0.97, {"logits": 0.0004}, 4.1, 6.8),)),
    ),
    api.NewFinalist(_SHA),
    api.Lent(_SHA, is_changed=True),
    api.NewPick(_OTHER_SHA, {_OTHER_SHA: '{"_type": "https://in-toto.io/Statement/v1"}'}),
    _DEVICE,
    api.Explanation(_DEVICE, ("It is online, last heard of 4 s ago.", "digits: should run digits@1.4.2 (rollout r3), and does.")),
    api.FleetView(
        "5d0c2f9e", is_frozen=False, broker="127.0.0.1:1883", is_connected=True, devices=200, online=197, active_rollouts=1,
        dropped={},
    ),
    api.Freeze(is_frozen=True, reason="power works on site"),
    api.NewBundle(_SHA, '{"_type": "https://in-toto.io/Statement/v1"}'),
    _BUNDLE,
    api.PublishAnswer(_BUNDLE, was_there=False),
    api.ReleaseView("digits", "1.4.2", _AT, (_BUNDLE,)),
    api.Block("digits@1.4.0", "wrong normalization"),
    api.BlockAnswer("digits@1.4.0", is_changed=True),
    api.BlockedView("digits@1.4.0", "wrong normalization", "user:ada", _AT),
    api.KeysView("5d0c2f9e", {_KEY_ID: _KEY}, {"77aa": _KEY}),
    api.OrderKey(_KEY_ID, _KEY),
    _PUBLIC_KEY,
    api.MetadataView(_PUBLIC_KEY, ("{…}",), {"targets": "{…}"}),
    api.NewMetadata(roles={"digits": '{"signatures": [], "signed": {"_type": "targets"}}'}),
    api.NewAssignment("digits@1.4.2", "site=lab"),
    api.AssignmentView("a4", "digits@1.4.2", "site=lab", "digits", "rollout r3", _AT),
    api.Assigned("a4", "digits@1.4.2", "digits", {"raspberry-pi-5": ("lab-07",)}, ("lab-08",), ()),
    api.NewRollout("digits@1.4.2", _SELECTOR, "24,50%,100%", "30m", _GATES, rate="60/min", windows=("mon-fri 22:00-05:00",)),
    api.Turn(),
    _MEMBER,
    _ROLLOUT,
    api.RolloutAnswer(_PLAN, _ROLLOUT),
    api.NewExperiment("digits@1.4.1", "digits@1.4.2", "site=lab", "metric:sold"),
    api.ExperimentView(
        "e1", "running", "", "digits", "site=lab", "metric:sold", "open", "B is ahead by 0.035; it could still be chance",
        _ARM_A, _ARM_B, 0.035, -0.004, 0.071, _AT,
    ),
    api.NewShadow("digits@1.4.2", "site=lab", "10%"),
    api.ShadowView(
        "h1", "running", "", "digits@1.4.2", "digits", "site=lab", 0.1, 14, 48_200, 410_770, 0,
        (api.AgreementView("logits", 0.981, 0.974, 0.988, 14, 48_200, is_of_devices=True),), 1.12,
        "48200 inputs compared, 410770 served without a copy; logits agrees 98.1% (97.4% to 98.8%, 14 devices)", _AT,
        "token:ops", (api.ShadowDeviceView("lab-07", "running", "", 3440, 29_300, 0, 0.979, 1.1),),
    ),
    api.NewCollection("digits", "site=lab", "1h", low_confidence=0.6, random="1%"),
    api.CollectionView(
        "s1", "digits", "site=lab", "active", "confidence below 0.6, 1 % at random", 14, 200, 0, 100_000_000, 37,
        912_004, _LATER, _AT, "token:ops",
    ),
    api.SampleView(
        _OTHER_SHA, "lab-07", "digits", _SHA, "confidence", "raw", 0.41, "7", _AT, _AT, 24_650
    ),
    api.SamplesGone("s1", 37),
    api.AlertView(
        "a7", "site-silent", "site=lab", "critical", "12 of 14 devices of the site lab have said nothing for 9 minutes",
        "look whether the site has power and a network", _AT, None, "", ("ops",),
    ),
    api.NewTarget("ops", "webhook", api.Webhook("https://hooks.example.org/edgekit", "a secret of forty characters or so"), None),
    api.TargetView("ops", "webhook", "hooks.example.org", "warning", ("alerts",), _AT, "user:ada", _AT, 0, ""),
    api.TargetTried("ops", has_arrived=True, words="it answered 204"),
    api.ArmPoint(1_795_768_200.0, 60.0, 1, "canary", 24, 1440, 6, 0.0042, 0.0019, 0.0071, 4.1, 6.8, 6.5, 7.2),
    api.DevicePoint(1_795_768_200.0, 3600.0, "digits", _SHA, 3600, 12, 4.1, 6.8, 0.04, 312.0, 51.5),
    api.DriftAnswer((
        api.DriftView(
            "digits@1.4.2", "raspberry-pi-5", "9f2c41d07a" + "5" * 54, 240, 12,
            {"inputs/x": api.Said(238, 14, 0.41), "outputs/logits": api.Said(238, 0, 0.12)}, {"logits": api.Confidence(0.95, 0.81)}, {"wrong-shape": 3},
        ),
    )),
    api.ReleasePoint(1_795_768_200.0, 3600.0, 240, 864_000, 2900, 4.2, 6.9, 0.05),
    _FILE,
    EnrolRequest("lab-07", "eke_…", _CSR, "raspberry-pi-5", "0.1.0"),
    EnrolAnswer("lab-07", 1, _PEM + _PEM, _LATER, "ekc_…"),
    RenewRequest(_CSR),
    NewTerminal("4f0c6c1e8a3b4b86", "v" * 43),
    MadeTerminal("ada", "ekp_…", _LATER, _URL, _PEM),
    Entry(
        1204, 1_795_768_200.0, "user:ada", "rollout.pause", "r3", "power works on site", '"running"', '"paused"', "192.0.2.7",
        _SHA, _OTHER_SHA,
    ),
)  # fmt: skip
EXAMPLES: Mapping[type, Any] = {type(example): example for example in _ALL}
