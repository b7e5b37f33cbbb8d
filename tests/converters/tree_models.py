"""What scikit-learn fits, in operators of ai.onnx.ml as its exporter writes them."""

from typing import Any

import onnx
from onnx import TensorProto, helper


def _whole(nodes: list[onnx.NodeProto], width: int, classes: int) -> onnx.ModelProto:
    """The exporter's order: the label first, then the probabilities as a list of dictionaries."""
    probabilities = helper.make_value_info(
        "output_probability",
        helper.make_sequence_type_proto(
            helper.make_map_type_proto(
                TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
            )
        ),
    )
    zipped = helper.make_node(
        "ZipMap",
        ["probabilities"],
        ["output_probability"],
        domain="ai.onnx.ml",
        classlabels_int64s=list(range(classes)),
    )
    graph = helper.make_graph(
        [*nodes, zipped], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("output_label", TensorProto.INT64, ["n"]), probabilities],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def linear(fitted: Any, standard: Any) -> onnx.ModelProto:
    """A StandardScaler, then a LogisticRegression fitted on what it gives."""
    classes = len(fitted.classes_)
    scaler = helper.make_node(
        "Scaler", ["x"], ["scaled"], domain="ai.onnx.ml", offset=standard.mean_.tolist(),
        scale=(1 / standard.scale_).tolist(),
    )  # fmt: skip
    classifier = helper.make_node(
        "LinearClassifier", ["scaled"], ["output_label", "probabilities"], domain="ai.onnx.ml",
        coefficients=fitted.coef_.ravel().tolist(), intercepts=fitted.intercept_.tolist(),
        classlabels_ints=list(range(classes)), multi_class=1, post_transform="SOFTMAX",
    )  # fmt: skip
    return _whole([scaler, classifier], fitted.coef_.shape[1], classes)


def forest(fitted: Any) -> onnx.ModelProto:
    """A RandomForestClassifier, whose leaves hold their share of the votes."""
    names = ("nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_values", "nodes_modes", "nodes_truenodeids",
             "nodes_falsenodeids")  # fmt: skip
    held: dict[str, list[Any]] = {name: [] for name in names}
    votes: dict[str, list[Any]] = {f"class_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")}
    for index, estimator in enumerate(fitted.estimators_):
        tree = estimator.tree_
        for node in range(tree.node_count):
            is_leaf = tree.children_left[node] < 0
            row = (
                index, node, max(int(tree.feature[node]), 0), 0.0 if is_leaf else float(tree.threshold[node]),
                "LEAF" if is_leaf else "BRANCH_LEQ", max(int(tree.children_left[node]), 0),
                max(int(tree.children_right[node]), 0),
            )  # fmt: skip
            for name, value in zip(names, row, strict=True):
                held[name].append(value)
            if is_leaf:
                shares = tree.value[node][0] / tree.value[node][0].sum() / len(fitted.estimators_)
                for cls, share in enumerate(shares):
                    for name, value in zip(votes, (index, node, cls, float(share)), strict=True):
                        votes[name].append(value)
    classes = len(fitted.classes_)
    trees = helper.make_node(
        "TreeEnsembleClassifier", ["x"], ["output_label", "probabilities"], domain="ai.onnx.ml", **held, **votes,
        classlabels_int64s=list(range(classes)), post_transform="NONE",
    )  # fmt: skip
    return _whole([trees], fitted.n_features_in_, classes)
