"""The sandbox: a DashScope that runs here, for try-outs, tests and benches.

It speaks the provider's wire contract and shares no code with the worker, so that the two cannot agree on a
mistake. It keeps its own bill: what it says was made is what a real account would have paid for.
"""
