"""What is on disk.

paths.py        where the files of a dataset are
rows.py         rows of JSON, JSON lines and parquet; files written whole or not at all
tables.py       prompts, responses, rewards and pairs: read and checked
provenance.py   run files, journals of unfinished work, shards
"""
