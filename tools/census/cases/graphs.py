"""Graphs: torch_geometric."""

from __future__ import annotations

import torch

from .vision import of

NODES = torch.randn(6, 16)
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 5]])
FEATURES = torch.randn(8, 4)
KINDS = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])
CONV, AGGR, ATTENTION = "torch_geometric.nn.conv", "torch_geometric.nn.aggr", "torch_geometric.nn.attention"
META = (["a"], [("a", "to", "a")])

TORCH_GEOMETRIC = {
    "AGNNConv": of(f"{CONV}.AGNNConv", (NODES, EDGES)),
    "DNAConv": of(f"{CONV}.DNAConv", (torch.randn(6, 3, 16), EDGES), 16, heads=2),
    "FeaStConv": of(f"{CONV}.FeaStConv", (NODES, EDGES), 16, 8, heads=2),
    "GATConv": of(f"{CONV}.GATConv", (NODES, EDGES), 16, 8, heads=2),
    "GATv2Conv": of(f"{CONV}.GATv2Conv", (NODES, EDGES), 16, 8, heads=2),
    "GENConv": of(f"{CONV}.GENConv", (NODES, EDGES), 16, 8),
    "GeneralConv": of(f"{CONV}.GeneralConv", (NODES, EDGES), 16, 8, heads=2, attention=True),
    "GPSConv": of(f"{CONV}.GPSConv", (NODES, EDGES), 16, None, heads=2),
    "GPSConv performer": of(f"{CONV}.GPSConv", (NODES, EDGES), 16, None, heads=2, attn_type="performer"),
    "HANConv": of(f"{CONV}.HANConv", ({"a": NODES}, {("a", "to", "a"): EDGES}), 16, 8, META, heads=2),
    "HEATConv": of(f"{CONV}.HEATConv", (NODES, EDGES, GROUPS, KINDS, FEATURES), 16, 8, 2, 2, 4, 4, 4, heads=2),
    "HGTConv": of(f"{CONV}.HGTConv", ({"a": NODES}, {("a", "to", "a"): EDGES}), 16, 8, META, heads=2),
    "HypergraphConv": of(
        f"{CONV}.HypergraphConv",
        {"x": NODES, "hyperedge_index": EDGES, "hyperedge_attr": torch.randn(6, 16)},
        16,
        8,
        use_attention=True,
    ),
    "PointTransformerConv": of(f"{CONV}.PointTransformerConv", (NODES, torch.randn(6, 3), EDGES), 16, 8),
    "RGATConv": of(f"{CONV}.RGATConv", (NODES, EDGES, KINDS), 16, 8, 2, heads=2),
    "SuperGATConv": of(f"{CONV}.SuperGATConv", (NODES, EDGES), 16, 8, heads=2),
    "TransformerConv": of(f"{CONV}.TransformerConv", (NODES, EDGES), 16, 8, heads=2),
    "GCNConv": of(f"{CONV}.GCNConv", (NODES, EDGES), 16, 8),
    "AttentionalAggregation": of(f"{AGGR}.AttentionalAggregation", (NODES, GROUPS), torch.nn.Linear(16, 1)),
    "SoftmaxAggregation": of(f"{AGGR}.SoftmaxAggregation", (NODES, GROUPS)),
    "Set2Set": of(f"{AGGR}.Set2Set", (NODES, GROUPS), 16, 2),
    "SetTransformer": of(f"{AGGR}.SetTransformerAggregation", (NODES, GROUPS), 16, heads=2),
    "GraphMultisetTransformer": of(f"{AGGR}.GraphMultisetTransformer", (NODES, GROUPS), 16, 2, heads=2),
    "MultiAggregation": of(
        f"{AGGR}.MultiAggregation",
        (NODES, GROUPS),
        ["mean", "max"],
        mode="attn",
        mode_kwargs={"in_channels": 16, "out_channels": 16, "num_heads": 2},
    ),
    "PolynormerAttention": of(f"{ATTENTION}.PolynormerAttention", NODES[None], 16, 2, head_channels=8),
    "SGFormerAttention": of(f"{ATTENTION}.SGFormerAttention", NODES[None], 16, 2),
    "QFormer": of(f"{ATTENTION}.QFormer", NODES[None], 16, 16, 16, 2, 1),
    "PerformerAttention": of(f"{ATTENTION}.PerformerAttention", NODES[None], 16, 2),
    "AttentiveFP": of("torch_geometric.nn.models.AttentiveFP", (NODES, EDGES, FEATURES, GROUPS), 16, 16, 4, 4, 2, 2),
    "JumpingKnowledge": of("torch_geometric.nn.models.JumpingKnowledge", ([NODES, NODES],), "lstm", 16, 2),
    "DenseGATConv": of("torch_geometric.nn.dense.DenseGATConv", (NODES[None], torch.ones(1, 6, 6)), 16, 8, heads=2),
    "MemPooling": of("torch_geometric.nn.pool.MemPooling", (NODES, GROUPS), 16, 8, 2, 2),
    "ASAPooling": of("torch_geometric.nn.pool.ASAPooling", (NODES, EDGES), 16),
    "EdgePooling": of("torch_geometric.nn.pool.EdgePooling", (NODES, EDGES, GROUPS), 16),
    "SAGPooling": of("torch_geometric.nn.pool.SAGPooling", (NODES, EDGES), 16, min_score=0.01),
    "DMoNPooling": of("torch_geometric.nn.dense.DMoNPooling", (NODES[None], torch.ones(1, 6, 6)), 16, 2),
}

CASES = {"torch-geometric": TORCH_GEOMETRIC}
