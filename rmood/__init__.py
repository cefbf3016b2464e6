"""A pure-PyTorch reward-model trainer: pairwise Bradley-Terry training in the open.

Floors (a module imports only from lower ones; tests/test_floors.py holds that):
    0  records config schedule loss distributed
    1  tokenization model optim diagnostics
    2  batching sharding report
    3  scoring checkpoint
The scripts train.py, sample.py, label.py, preprocess.py and evaluate.py stand on top and never import each other.
"""
