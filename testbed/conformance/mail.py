"""Peal's SMTP client against servers that nobody here wrote (aiosmtpd, and Exim if it is installed), and its mails against
parsers and verifiers that nobody here wrote (Python's email package, dkimpy)."""

import base64
import email
import email.policy
import json
import os
import pathlib
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time

import dkim
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

DIR = pathlib.Path(tempfile.mkdtemp())
USER, PASSWORD = "shop", "correct horse"
failures = 0


def expect(what, is_, wanted):
    global failures
    if is_ != wanted:
        failures += 1
        print(f"MISMATCH {what}: {is_!r}, wanted {wanted!r}", file=sys.stderr)


ATTACHED = bytes(range(256)) * 40
TEXT = "Grüezi Ann\n\n.\n..a line with dots\nFrom the shop  \n" + "long " * 400 + "\n"
HTML = "<html><body><p>Grüezi <img src='cid:logo'></p></body></html>"
EMAIL = {
    "subject": "Ihre Bestellung ist unterwegs – " + "sehr " * 30 + "bald",
    "text": TEXT,
    "html": HTML,
    "preheader": "5 < 6",
    "from": {"email": "news@shop.example.com", "name": 'Der "Laden", Zürich'},
    "reply_to": {"email": "help@shop.example.com"},
    "headers": {"X-Order": "42", "References": "<1@shop.example.com>"},
    "attachments": [
        {"name": "Rechnung für Ann.pdf", "type": "application/pdf", "content": base64.b64encode(ATTACHED).decode()},
        {"name": "logo.png", "type": "image/png", "content": base64.b64encode(b"png").decode(), "content_id": "logo"},
        {"name": "data.csv", "type": "text/csv", "content": base64.b64encode(b"a\rb\nc\0").decode()},
    ],
}


class Box:
    """Keeps what arrives."""

    def __init__(self):
        self.mails = []
        self.refuse = {}

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address in self.refuse:
            return self.refuse[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.mails.append((envelope.mail_from, envelope.rcpt_tos, envelope.content))
        return "250 2.0.0 Ok: queued as 224B824BD40"


def keys():
    """Two keys that sign, their options for the client, and what DNS says of them."""
    made = {
        "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ed": ed25519.Ed25519PrivateKey.generate(),
    }
    options, published = [], {}
    for selector, key in made.items():
        # PKCS #1 for RSA, PKCS #8 for the other.
        form = serialization.PrivateFormat.TraditionalOpenSSL if selector == "rsa" else serialization.PrivateFormat.PKCS8
        pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        (DIR / f"{selector}.pem").write_bytes(pem)
        options += ["--dkim", f"example.com:{selector}:{DIR / selector}.pem"]
        if selector == "rsa":
            der = key.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        else:
            der = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        kind = "rsa" if selector == "rsa" else "ed25519"
        name = f"{selector}._domainkey.example.com.".encode()
        published[name] = f"v=DKIM1; k={kind}; p={base64.b64encode(der).decode()}".encode()
    return options, lambda name, timeout=5: published.get(name)


def send(port, ca, *options, to="ann@example.net", content=EMAIL):
    (DIR / "email.json").write_text(json.dumps(content))
    command = [os.environ["TESTBED"], "mail", "--host", "localhost", "--port", str(port), "--ca", ca, "--to", to]
    command += ["--email", DIR / "email.json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return {}
    return json.loads(done.stdout)["outcomes"]


def holds(raw, index, dns):
    try:
        return dkim.DKIM(raw).verify(idx=index, dnsfunc=dns)
    except dkim.DKIMException:
        return False


def check_signatures(raw, dns):
    """Both signatures hold, and none does once something has been changed or added."""
    expect("signatures", raw.count(b"DKIM-Signature:"), 2)
    for index in range(2):
        expect(f"signature {index}", holds(raw, index, dns), True)
        for what, forged in [
            ("another subject", raw.replace(b"Subject: ", b"Subject: x", 1)),
            ("a second subject", raw.replace(b"Subject: ", b"Subject: Win\r\nSubject: ", 1)),
            ("a second subject below", raw.replace(b"MIME-Version: ", b"Subject: Win\r\nMIME-Version: ", 1)),
            ("a second author", raw.replace(b"MIME-Version: ", b"From: eve@example.com\r\nMIME-Version: ", 1)),
            ("another body", raw.replace(b"dots", b"dote", 1)),
            ("a header for unsubscription", raw.replace(b"MIME-Version: ", b"List-Unsubscribe: <https://e>\r\nMIME-Version: ", 1)),
        ]:
            assert forged != raw, what
            expect(f"signature {index} with {what}", holds(forged, index, dns), False)


def check_content(raw):
    """The mail means to another parser what was asked for."""
    mail = email.message_from_bytes(raw, policy=email.policy.default)
    expect("defects", [part.defects for part in mail.walk() if part.defects], [])
    expect("subject", mail["subject"], EMAIL["subject"])
    author = mail["from"].addresses[0]
    expect("author", (author.display_name, author.addr_spec), (EMAIL["from"]["name"], EMAIL["from"]["email"]))
    expect("reply to", str(mail["reply-to"]).strip("<>"), EMAIL["reply_to"]["email"])
    expect("to", mail["to"].addresses[0].addr_spec, "ann@example.net")
    expect("order", mail["x-order"], "42")
    expect("references", mail["references"], "<1@shop.example.com>")
    expect("message id", mail["message-id"].endswith("@shop.example.com>"), True)
    expect("date", abs(mail["date"].datetime.timestamp() - time.time()) < 300, True)
    expect("text", mail.get_body(("plain",)).get_content().replace("\r\n", "\n").rstrip("\n"), TEXT.rstrip("\n"))
    html = mail.get_body(("html",)).get_content()
    expect("preheader", "<body><div" in html and "5 &lt; 6" in html, True)
    files = {part.get_filename(): part.get_content() for part in mail.iter_attachments()}
    expect("files", sorted(files), ["Rechnung für Ann.pdf", "data.csv"])
    expect("file", files["Rechnung für Ann.pdf"], ATTACHED)
    inline = [part for part in mail.walk() if part["content-id"]]
    expect("inline", [(part["content-id"], part.get_content()) for part in inline], [("<logo>", b"png")])
    for line in raw.split(b"\r\n"):
        if len(line) > 998 or b"\r" in line or b"\n" in line:
            expect("lines", line, b"short, without bare CR and LF")


def authenticate(server, session, envelope, mechanism, data):
    known = isinstance(data, LoginPassword) and (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=known, handled=False)


def aiosmtpd(tls, ca, options, dns):
    box = Box()
    for implicit in (False, True):
        settings = {"ssl_context": tls} if implicit else {}
        server = {"require_starttls": not implicit, "tls_context": None if implicit else tls}
        controller = Controller(
            box, hostname="127.0.0.1", port=0, authenticator=authenticate, auth_required=True,
            auth_require_tls=not implicit, **settings, **server,
        )
        # Port 0 would be tried by the controller itself.
        controller.port = free_port()
        controller.start()
        try:
            how = ["--tls"] if implicit else []
            login = ["--user", USER, "--password", PASSWORD]
            expect("aiosmtpd takes mails", send(controller.port, ca, *how, *login, *options, "--count", "20", "--together", "5"),
                   {"accepted": 20})
            expect("mails", len(box.mails), 20)
            sender, recipients, raw = box.mails[0]
            expect("sender", sender, EMAIL["from"]["email"])
            expect("recipients", recipients, ["ann@example.net"])
            check_signatures(raw, dns)
            check_content(raw)
            box.mails.clear()
            bad = ["--user", USER, "--password", "wrong"]
            expect("wrong password", send(controller.port, ca, *how, *bad), {"credential_trouble smtp_535_5.7.8": 1})
            box.refuse = {"gone@example.net": "550 5.1.1 no such user"}
            expect("no such user", send(controller.port, ca, *how, *login, to="gone@example.net"),
                   {"address_gone smtp_550_5.1.1 0": 1})
        finally:
            controller.stop()


EXIM_CONF = """
primary_hostname = localhost
spool_directory = {dir}/spool
log_file_path = {dir}/exim_%slog
local_interfaces = 127.0.0.1
daemon_smtp_ports = {starttls} : {tls}
tls_on_connect_ports = {tls}
tls_advertise_hosts = *
tls_certificate = {dir}/leaf.pem
tls_privatekey = {dir}/leaf.key
auth_advertise_hosts = ${{if eq{{$tls_in_cipher}}{{}}{{}}{{*}}}}
dsn_advertise_hosts = *
acl_smtp_rcpt = rcpt
deliver_drop_privilege = true
smtp_accept_max = 50
begin acl
rcpt:
  deny message = 5.7.1 relay access denied
       !authenticated = *
  deny message = 5.1.1 no such user
       recipients = gone@example.net
  accept
begin routers
onward:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = onward
begin transports
onward:
  driver = smtp
  port = {onward}
  hosts_avoid_tls = *
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{user}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
"""


def exim(ca, options, dns):
    """A real MTA takes the mails and sends them on to aiosmtpd; the signatures outlive it."""
    program = shutil.which("exim4", path="/usr/sbin:/sbin:" + os.environ["PATH"])
    if not program or os.geteuid() != 0:
        print("skipped  Exim: needs root and Debian's exim4-daemon-light")
        return
    box = Box()
    sink = Controller(box, hostname="127.0.0.1", port=free_port())
    sink.start()
    ports = {"starttls": free_port(), "tls": free_port(), "onward": sink.port}
    conf, spool = DIR / "exim.conf", DIR / "spool"
    conf.write_text(EXIM_CONF.format(dir=DIR, user=USER, password=PASSWORD, **ports))
    spool.mkdir()
    DIR.chmod(0o755)
    for path in (DIR, spool, DIR / "leaf.key"):
        shutil.chown(path, "Debian-exim")
    server = subprocess.Popen([program, "-bdf", "-q5s", "-C", conf], stdout=sys.stderr, stderr=sys.stderr)
    try:
        wait_for(ports["tls"], server)
        login = ["--user", USER, "--password", PASSWORD]
        signed = [*login, *options, "--bounces", "bounces@example.com"]
        for how, port in (([], ports["starttls"]), (["--tls"], ports["tls"])):
            taken = send(port, ca, *how, *signed, "--count", "10", "--together", "3")
            expect("Exim takes mails", taken, {"accepted": 10})
            bad = send(port, ca, *how, "--user", USER, "--password", "wrong")
            expect("wrong password", bad, {"credential_trouble smtp_535": 1})
            expect("no login", send(port, ca, *how), {"credential_trouble smtp_550_5.7.1": 1})
            gone = send(port, ca, *how, *login, to="gone@example.net")
            expect("no such user", gone, {"address_gone smtp_550_5.1.1 0": 1})
        deadline = time.time() + 60
        while len(box.mails) < 20 and time.time() < deadline:
            time.sleep(0.1)
        expect("mails through Exim", len(box.mails), 20)
        for sender, _, raw in box.mails:
            expect("bounce address", sender.startswith("bounces+") and sender.endswith("@example.com"), True)
        if box.mails:
            check_signatures(box.mails[0][2], dns)
            check_content(box.mails[0][2])
    finally:
        server.terminate()
        server.wait(30)
        sink.stop()
        if failures:
            for log in DIR.glob("exim_*log"):
                print(log.read_text(), file=sys.stderr)


def wait_for(port, server):
    for _ in range(100):
        if server.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit("Exim did not start")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main():
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    ca = str(DIR / "ca.pem")
    authority.cert_pem.write_to_path(ca)
    leaf.private_key_pem.write_to_path(str(DIR / "leaf.key"))
    (DIR / "leaf.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(tls)
    options, dns = keys()
    try:
        aiosmtpd(tls, ca, options, dns)
        exim(ca, options, dns)
    finally:
        shutil.rmtree(DIR, ignore_errors=True)
    print("FAILED" if failures else "ok      mail: aiosmtpd, dkimpy, Exim")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
