"""Which pool for Django?  One site under gunicorn, its database reached in every way that people use.

`python -m benchmarks.django` starts the servers, serves the same project once with each contender, and asks
for pages with wrk.
"""
