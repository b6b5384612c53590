"""`make bench-gateway`: what a request costs through our gateway and through others.

`__main__.py` runs the rounds; `contenders.py` says who takes part and `ours.py` prepares our own gateway;
`fake_engine.py` answers, `load.py` asks, `processes.py` pins processes to cores and reads what they used;
`report.py` turns figures into a table and `build/bench/gateway.json`.
"""
