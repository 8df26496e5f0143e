"""The simulators of SendGrid and Mailchimp Transactional, driven by the services' own Python clients."""

import os

from check import AT, check, done, file, script

os.environ["SSL_CERT_FILE"] = os.environ["REQUESTS_CA_BUNDLE"] = file("ca.pem")

import mailchimp_transactional
import python_http_client.exceptions
import sendgrid
from mailchimp_transactional.api_client import ApiClientError
from sendgrid.helpers.mail import Attachment, Disposition, FileContent, FileName, FileType, Mail


def send(key=AT["sendgrid_key"], to="ann@example.com", **change):
    mail = Mail(
        from_email=("shop@example.com", "Shop"), to_emails=to, subject="ding",
        **{"plain_text_content": "Hello", "html_content": "<p>Hello"} | change,
    )
    mail.attachment = Attachment(FileContent("aGk="), FileName("a.txt"), FileType("text/plain"), Disposition("attachment"))
    client = sendgrid.SendGridAPIClient(key, host=f"https://localhost:{AT['sendgrid_port']}")
    try:
        answer = client.send(mail)
        return answer.status_code, bool(answer.headers["X-Message-Id"])
    except python_http_client.exceptions.HTTPError as error:
        return error.status_code, bool(error.to_dict["errors"])


check("SendGrid takes a mail", send(), (202, True))
check("a wrong key", send("SG.wrong"), (401, True))
check("no mailbox", send(to="ann@localhost"), (400, True))
script(sendgrid={"rules": [{"token": "busy@example.com", "answer": {"reason": "busy", "status": 429}}]})
check("a rate limit", send(to="busy@example.com"), (429, True))


def transactional(key=AT["mailchimp_key"], to="ann@example.com", **change):
    client = mailchimp_transactional.Client(key)
    client.host = client.api_client.host = f"https://localhost:{AT['mailchimp_port']}/api/1.0"
    message = {"from_email": "shop@example.com", "to": [{"email": to}], "subject": "ding", "text": "Hello"} | change
    try:
        return client.messages.send({"message": message})[0]
    except ApiClientError as error:
        return error.text["name"] if isinstance(error.text, dict) else error.text


sent = transactional(attachments=[{"type": "text/plain", "name": "a.txt", "content": "aGk="}])
check("Mailchimp takes a mail", (sent["status"], sent["reject_reason"], len(sent["_id"])), ("sent", None, 32))
check("a wrong key", "Invalid_Key" in str(transactional("md-wrong")), True)
check("no content", "ValidationError" in str(transactional(text=None)), True)
script(mailchimp={"rules": [{"token": "gone@example.com", "answer": {"reason": "hard-bounce"}}]})
gone = transactional(to="gone@example.com")
check("a bounce", (gone["status"], gone["reject_reason"]), ("rejected", "hard-bounce"))

done("sendgrid, mailchimp_transactional")
