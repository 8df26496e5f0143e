"""The mail server's simulator, driven by Python's smtplib."""

import smtplib
import socket
import ssl

from check import AT, admin, check, done, file, script

TLS = ssl.create_default_context(cafile=file("ca.pem"))
MAIL = b"From: shop@example.com\r\nDate: Mon, 24 Nov 2025 16:00:00 +0000\r\nMessage-ID: <1@example.com>\r\n\r\n.\r\n..hello\r\n"


def connected(password=None):
    client = smtplib.SMTP("localhost", AT["smtp_port"], timeout=10)
    client.starttls(context=TLS)
    client.login(AT["smtp_user"], password or AT["smtp_password"])
    return client


def refused(call):
    try:
        call()
        return None
    except smtplib.SMTPRecipientsRefused as error:
        return next(iter(error.recipients.values()))[0]
    except smtplib.SMTPResponseException as error:
        return error.smtp_code


def mail(client, content=MAIL, to="ann@example.com"):
    return refused(lambda: client.sendmail("shop@example.com", [to], content))


client = connected()
check("extensions", sorted(client.esmtp_features), ["auth", "dsn", "enhancedstatuscodes", "pipelining", "size"])
check("two mails over one connection", [mail(client), mail(client)], [None, None])
log = admin("GET", "/log")["smtp"]
check("dots", log[0]["payload"].endswith("\r\n\r\n.\r\n..hello\r\n"), True)
check("recipient", log[0]["token"], "ann@example.com")
check("id", log[0]["id"], "<1@example.com>")
check("a wrong password", refused(lambda: connected("wrong")), 535)
check("a missing header", mail(client, b"From: shop@example.com\r\n\r\nhello\r\n"), 550)
check("8bit", mail(client, MAIL + "ü\r\n".encode()), 554)
check("a long line", mail(client, MAIL + b"x" * 1200 + b"\r\n"), 500)
check("too large", mail(client, MAIL + (b"x" * 70 + b"\r\n") * 20_000), 552)
script(smtp={"rules": [
    {"token": "gone@example.com", "answer": {"reason": "RCPT 550 5.1.1 no such user"}},
    {"token": "spam@example.com", "answer": {"reason": "END 554 5.7.1 spam"}},
]})
check("no such user", mail(client, to="gone@example.com"), 550)
check("spam", mail(client, to="spam@example.com"), 554)
check("after refusals", mail(client), None)
client.rset()
check("no sender", client.rcpt("ann@example.com")[0], 503)
check("an unknown parameter", client.mail("shop@example.com", ["BODY=BINARYMIME"])[0], 555)
client.quit()

plain = smtplib.SMTP("localhost", AT["smtp_port"], timeout=10)
plain.ehlo()
check("AUTH needs TLS", plain.has_extn("auth"), False)
check("MAIL needs TLS", plain.mail("shop@example.com")[0], 530)
plain.close()

# What is sent behind STARTTLS without encryption is not taken for what comes after it.
raw = socket.create_connection(("localhost", AT["smtp_port"]), 10)
raw.recv(1000)
raw.sendall(b"STARTTLS\r\nNOOP\r\n")
answered = b""
while part := raw.recv(1000):
    answered += part
check("injection", answered.count(b"\r\n"), 1)

done("smtplib")
