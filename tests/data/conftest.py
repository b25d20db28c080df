from tests.data.http_server import place, server  # noqa: F401  (fixtures)
