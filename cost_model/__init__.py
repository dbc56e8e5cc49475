"""What it costs: FLOPs, bytes, seconds and dollars per token, from a model's shape and a machine.

    from cost_model.paper import Paper
    from cost_model.shape import V32
    from cost_model.costs import usd_per_million

    usd_per_million(Paper(V32), "decode", [0, 65536, 131071], price=2.0)   # 0.095, 0.197, 0.249

Three presets answer the same questions and are never mixed: `paper` (constants recovered from
figure 3 of the DeepSeek-V3.2 report), `roofline` (data sheets and published kernel rates, nothing
fitted) and `measured` (operator times from a file). All of them give GPU-seconds of one token at a
position; everything else (spans, requests, tool loops, steps, dollars) is a sum of those.

Position and context: a token at position p costs what the figure shows at x = p, namely attention
to p tokens of context. Prices are USD per GPU-hour.
"""
