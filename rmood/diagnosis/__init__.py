"""What did the proxy learn, and why?

run.py       diagnose, quality, best_of_n: plain arguments in, numbers and findings out
checks.py    are the training files what they should be?
inputs.py    what they are given: rewards, texts and models, checked to belong together
measures.py  proxy against gold, numpy only
pairs.py     training pairs against the gold rewards they were made of
probes.py    scores computed by the model in other ways
trained.py   what the model, its run and its training pairs say
faults.py    numbers to named faults, by the table in faults.toml
report.py    one HTML page, with figures.py
text.py      the same numbers and findings as plain text
"""
