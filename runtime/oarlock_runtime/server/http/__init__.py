"""OpenAI's API over HTTP. Runs in the server processes.

A request goes through these files: app (routes, keys) → body (bytes to fields) → generation (fields to tokens) →
handler (submits it, then streams or collects) → choice (tokens to text, stop strings, log-probabilities) → replies
(JSON).
"""
