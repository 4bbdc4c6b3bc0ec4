-- Ends a run of wrk with one line of JSON.
done = function(summary, latency, requests)
  io.write(string.format(
    '\n{"requests": %d, "microseconds": %d, "p50_us": %d, "p99_us": %d, "max_us": %d, ' ..
    '"refused": %d, "broken": %d, "late": %d, "status": %d}\n',
    summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), latency.max,
    summary.errors.connect, summary.errors.read + summary.errors.write,
    summary.errors.timeout, summary.errors.status))
end
