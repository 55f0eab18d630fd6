"""Fuzz targets over everything that strangers and peers can feed.

    make fuzz                                  every target for a minute
    python -m fuzz responder --seconds 600     one for longer
    python -m fuzz responder --input FILE      one input again

A target is a function of bytes, a list of what it may raise, and seeds (see `fuzz.target`). With atheris installed the
runs are guided by coverage; without it a plain runner mutates the seeds and the kept corpus, the same way for the same
`--seed`. An input that raises anything else is kept in `fuzz/corpus/TARGET`, where the test suite runs it from then on.
"""
