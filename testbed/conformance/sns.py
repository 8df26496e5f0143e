"""Amazon SNS both ways: boto3 drives the simulator, and Peal's client publishes to moto, which checks signatures."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import boto3
import botocore.config
import botocore.exceptions
import trustme

from check import AT, check, done, file, script

QUIET = botocore.config.Config(retries={"max_attempts": 0})


def simulator(secret=AT["sns_secret_access_key"], key=AT["sns_access_key_id"]):
    return boto3.client(
        "sns", endpoint_url=f"https://localhost:{AT['sns_port']}", verify=file("ca.pem"), config=QUIET,
        region_name=AT["sns_region"], aws_access_key_id=key, aws_secret_access_key=secret,
    )


def publish(client, **request):
    try:
        return len(client.publish(**request)["MessageId"])
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]


ARN = f"arn:aws:sns:{AT['sns_region']}:123456789012:endpoint/GCM/shop/8f7c"
ATTRIBUTES = {"AWS.SNS.SMS.SenderID": {"DataType": "String", "StringValue": "Shop"}}
payload = json.dumps({"fcmV1Message": {"message": {"notification": {"title": "Grüezi 😀 & +1"}}}})
structured = json.dumps({"default": "x", "GCM": payload})
us = simulator()
check("a text message", publish(us, PhoneNumber="+41791234567", Message="ding ~*' 😀", MessageAttributes=ATTRIBUTES), 36)
check("a push", publish(us, TargetArn=ARN, Message=structured, MessageStructure="json"), 36)
check("a wrong secret", publish(simulator("wrong"), PhoneNumber="+41791234567", Message="x"), ("SignatureDoesNotMatch", 403))
check("a wrong key", publish(simulator(key="AKIAOTHER"), PhoneNumber="+41791234567", Message="x"), ("InvalidClientTokenId", 403))
check("a number", publish(us, PhoneNumber="ann", Message="x"), ("InvalidParameter", 400))
check("no default", publish(us, TargetArn=ARN, Message='{"GCM":"{}"}', MessageStructure="json"), ("InvalidParameter", 400))
script(sns={"rules": [{"token": ARN, "answer": {"reason": "EndpointDisabled"}}]})
check("a disabled endpoint", publish(us, TargetArn=ARN, Message="x"), ("EndpointDisabled", 400))
script(sns={"rules": []})

# moto checks signatures once it has answered as many requests without.
directory = pathlib.Path(tempfile.mkdtemp())
authority = trustme.CA()
leaf = authority.issue_cert("localhost", "127.0.0.1")
authority.cert_pem.write_to_path(directory / "ca.pem")
leaf.private_key_pem.write_to_path(directory / "key.pem")
(directory / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
moto = subprocess.Popen(
    [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port),
     "-c", str(directory / "chain.pem"), "-k", str(directory / "key.pem")],
    env=os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": "6"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)
try:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.1)

    def amazon(service, key="x", secret="x"):
        return boto3.client(
            service, endpoint_url=f"https://localhost:{port}", verify=str(directory / "ca.pem"), config=QUIET,
            region_name="eu-central-1", aws_access_key_id=key, aws_secret_access_key=secret,
        )

    iam = amazon("iam")
    iam.create_user(UserName="peal")
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sns:*", "Resource": "*"}]}
    iam.put_user_policy(UserName="peal", PolicyName="sns", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="peal")["AccessKey"]
    sns = amazon("sns")
    platform = sns.create_platform_application(Name="shop", Platform="GCM", Attributes={"PlatformCredential": "x"})
    endpoint = sns.create_platform_endpoint(PlatformApplicationArn=platform["PlatformApplicationArn"], Token="t1")
    arn = endpoint["EndpointArn"]
    other = sns.create_platform_endpoint(PlatformApplicationArn=platform["PlatformApplicationArn"], Token="t2")

    def deliver(address, content, secret=key["SecretAccessKey"], id=key["AccessKeyId"]):
        settings = {"endpoint": f"https://localhost:{port}", "ca_file": str(directory / "ca.pem")}
        credential = {"region": "eu-central-1", "access_key_id": id, "secret_access_key": secret}
        out = subprocess.run(
            [os.environ["TESTBED"], "deliver", "--provider", "sns", "--settings", json.dumps(settings),
             "--credential", json.dumps(credential), "--address", json.dumps(address), "--content", json.dumps(content)],
            stdout=subprocess.PIPE, check=True,
        )
        return json.loads(out.stdout)

    device, phone = {"type": "sns", "target_arn": arn}, {"type": "phone", "phone": "+41791234567"}
    # moto signs the fields as Python encodes them, which differs in `~` and `*`.
    push, sms = {"push": {"title": "Grüezi 😀 & +1 '"}}, {"sms": {"text": "ding 😀 +&='", "from": "Shop"}}
    for what, address, content in (("push", device, push), ("text message", phone, sms)):
        taken = deliver(address, content)
        check(f"moto takes a {what}", (taken["outcome"], len(taken["provider_id"] or "")), ("accepted", 36))
    check("a wrong secret at moto", deliver(device, push, "wrong")["outcome"], "credential_trouble SignatureDoesNotMatch")
    check("a wrong key at moto", deliver(device, push, id="AKIAOTHER")["outcome"], "credential_trouble InvalidClientTokenId")
    gone = {"type": "sns", "target_arn": arn.rsplit("/", 1)[0] + "/00000000-0000-0000-0000-000000000000"}
    check("an endpoint that was deleted", deliver(gone, push)["outcome"], "address_gone NotFound 0")
    amazon("sns", key["AccessKeyId"], key["SecretAccessKey"]).set_endpoint_attributes(
        EndpointArn=other["EndpointArn"], Attributes={"Enabled": "false"}
    )
    disabled = {"type": "sns", "target_arn": other["EndpointArn"]}
    check("an endpoint that is disabled", deliver(disabled, push)["outcome"], "address_gone EndpointDisabled 0")
finally:
    moto.terminate()
done("boto3 and moto")
