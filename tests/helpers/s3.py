"""A local object store that speaks S3, and an empty bucket in it."""

import itertools

import pytest

COUNTER = itertools.count()


@pytest.fixture(scope="session")
def server():
    """The address of a server of this process."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture(scope="session")
def careless_server():
    """The same, but for If-None-Match, which it does not heed: some imitations of S3 are like that."""
    import threading

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    app = DomainDispatcherApplication(create_backend_app)

    def careless(environ, start_response):
        environ.pop("HTTP_IF_NONE_MATCH", None)
        return app(environ, start_response)

    running = make_server("127.0.0.1", 0, careless, True, request_handler=MotoRequestHandler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()


@pytest.fixture
def bucket(server, monkeypatch):
    """s3://NAME, with the environment that clients read."""
    return new_bucket(server, monkeypatch)


@pytest.fixture
def careless_bucket(careless_server, monkeypatch):
    """The same, of the careless server."""
    return new_bucket(careless_server, monkeypatch)


def new_bucket(server, monkeypatch, key="key"):
    """An empty bucket, and the environment in which s3://NAME means it."""
    environment = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": key,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    import boto3

    name = f"bucket-{next(COUNTER)}"
    boto3.client("s3", endpoint_url=server, region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"
