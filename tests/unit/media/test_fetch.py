"""What items name is read from allowed folders and hosts only: traversal, links, other schemes, inner addresses."""

import http.server
import os
import socket
import threading
import time

import pytest

from models.media.fetch import MediaReader, MediaRefused
from models.media.settings import MediaSettings
from models.media.wire import TimeLimit


@pytest.fixture
def roots(tmp_path):
    for name in ("allowed", "other", "allowed-too"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "picture.png").write_bytes(name.encode())
    return tmp_path


def reader(roots, **settings) -> MediaReader:
    return MediaReader(MediaSettings(roots=(str(roots / "allowed"),), **settings))


def test_a_file_below_a_root_is_read_by_its_path_from_there_or_its_whole_path(roots) -> None:
    assert reader(roots).read("picture.png") == b"allowed"
    assert reader(roots).read(str(roots / "allowed" / "picture.png")) == b"allowed"


@pytest.mark.parametrize(
    "path",
    [
        "../other/picture.png",
        "x/../../other/picture.png",
        "{root}/other/picture.png",
        "{root}/allowed/../other/picture.png",
        "{root}/allowed-too/picture.png",
        "/etc/passwd",
        "../../../../../../etc/passwd",
        "missing.png",
        ".",
        "",
        "picture.png\x00.jpg",
        "link-to-file",
        "link-to-folder/picture.png",
        "pipe",
        "a" * 5000,
    ],
)
def test_whatever_leads_elsewhere_is_refused(roots, path: str) -> None:
    (roots / "allowed" / "link-to-file").symlink_to(roots / "other" / "picture.png")
    (roots / "allowed" / "link-to-folder").symlink_to(roots / "other")
    os.mkfifo(roots / "allowed" / "pipe")
    with pytest.raises(MediaRefused):
        reader(roots).read(path.format(root=roots))


def test_a_link_that_stays_inside_is_followed(roots) -> None:
    (roots / "allowed" / "link").symlink_to(roots / "allowed" / "picture.png")
    assert reader(roots).read("link") == b"allowed"


def test_without_roots_and_hosts_nothing_is_read(roots) -> None:
    nothing = MediaReader(MediaSettings())
    for reference in (
        str(roots / "allowed" / "picture.png"),
        "picture.png",
        "http://localhost/x",
        "https://example.org/",
    ):
        with pytest.raises(MediaRefused):
            nothing.read(reference)


def test_a_file_that_is_too_large_is_not_taken(roots) -> None:
    (roots / "allowed" / "large").write_bytes(b"x" * 2048)
    with pytest.raises(MediaRefused, match="max_bytes = 1024"):
        reader(roots, max_bytes=1024).read("large")


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Host"]))  # type: ignore[attr-defined]
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/picture.png")
            self.end_headers()
        elif self.path == "/slow":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        elif self.path == "/half":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"half")
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(64):
                self.wfile.write(b"x" * 1024)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"picture of " + self.path.encode())

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True  # the reader hung up, as it should


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as one:
        one.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=one.serve_forever, args=(0.01,))
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def over_http(**settings) -> MediaReader:
    return MediaReader(MediaSettings(**{"hosts": ("localhost", "127.0.0.1"), "private_addresses": True, **settings}))


def test_a_url_of_an_allowed_host_is_fetched(server) -> None:
    url = f"http://LOCALHOST:{server.server_port}/a picture?size=1&x= y#part"
    assert over_http().read(url) == b"picture of /a%20picture?size=1&x=%20y"
    assert server.asked == [("/a%20picture?size=1&x=%20y", f"localhost:{server.server_port}")]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1.example.org:{port}/",
        "http://localhost@169.254.169.254/latest/meta-data",
        "http://user:word@localhost:{port}/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f000001:{port}/",
        "http://localhost\\@169.254.169.254/",
        "file:///etc/passwd",
        "FILE://localhost/etc/passwd",
        "ftp://localhost/x",
        "gopher://localhost:{port}/_GET",
        "http://localhost:{port}/x\r\nHost: other",
        "http://localhost:99999/",
        "http://",
        "http:///picture.png",
    ],
)
def test_other_hosts_schemes_and_tricks_are_refused_before_anything_is_sent(server, url: str) -> None:
    with pytest.raises(MediaRefused):
        over_http().read(url.format(port=server.server_port))
    assert server.asked == []


def test_an_allowed_host_with_an_inner_address_is_refused_unless_the_settings_say_so(server) -> None:
    with pytest.raises(MediaRefused, match="not public"):
        over_http(private_addresses=False).read(f"http://localhost:{server.server_port}/")
    assert server.asked == []


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "169.254.169.254", "127.0.0.1", "::1", "::ffff:10.0.0.1", "fd00::1", "0.0.0.0", "224.0.0.1"]
)
def test_every_kind_of_inner_address_is_refused(address: str) -> None:
    with pytest.raises(MediaRefused, match="not public"):
        MediaReader(MediaSettings(hosts=(address,)))._addresses(address, 80, TimeLimit(5))


def test_one_inner_address_among_public_ones_is_enough_to_refuse(monkeypatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 80)) for a in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(MediaRefused, match="not public"):
        MediaReader(MediaSettings(hosts=("example.org",)))._addresses("example.org", 80, TimeLimit(5))


def test_redirects_are_not_followed(server) -> None:
    with pytest.raises(MediaRefused, match="302"):
        over_http().read(f"http://localhost:{server.server_port}/redirect")
    assert len(server.asked) == 1


def test_an_answer_that_does_not_end_is_cut_at_the_limit(server) -> None:
    with pytest.raises(MediaRefused, match="max_bytes"):
        over_http(max_bytes=4096).read(f"http://localhost:{server.server_port}/endless")


def test_an_answer_that_ends_in_the_middle_is_refused(server) -> None:
    with pytest.raises(MediaRefused):
        over_http().read(f"http://localhost:{server.server_port}/half")


def test_a_server_that_drips_does_not_get_more_time(server) -> None:
    began = time.monotonic()
    with pytest.raises(MediaRefused):
        over_http(timeout_s=0.5).read(f"http://localhost:{server.server_port}/slow")
    assert time.monotonic() - began < 5.0


@pytest.fixture
def certified(tmp_path, server):
    """The same server behind TLS, and the file of its certificate, which nobody has signed but itself."""
    import datetime
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoded = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files[1].write_bytes(key.private_bytes(*encoded))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return files[0]


def test_over_tls_the_certificate_must_be_trusted_and_of_that_host(server, certified, monkeypatch) -> None:
    url = f"https://localhost:{server.server_port}/x"
    with pytest.raises(MediaRefused, match="SSLCertVerificationError"):
        over_http().read(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certified))
    assert over_http().read(url) == b"picture of /x"
    with pytest.raises(MediaRefused, match="SSLCertVerificationError"):
        over_http().read(url.replace("localhost", "127.0.0.1"))
