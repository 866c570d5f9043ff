"""Options as earlier versions saved them."""

FORMER = {
    "gradient": "stop",
    "gain": None,
    "eps": None,
    "placement": "pre_skip",
    "class_attention": False,
    "pooling": False,
    "channel": True,
    "linear": False,
    "backend": "auto",
}
"""What `PreconditionConfig.to_dict` gave while it had fields that selected attention."""
