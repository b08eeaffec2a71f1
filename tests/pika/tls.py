"""AMQP over TLS through pika, whose TLS is OpenSSL's: versions, certificates on both sides, SASL EXTERNAL.

    tls.py HOST:PORT HOST:PORT CA OURS THEIRS STRANGER     two nodes' TLS ports; files NAME.pem and NAME.key:
                                                           OURS and THEIRS of the authority CA (only OURS is a user's), STRANGER of another

Exits 1 if something is not as it must be.
"""
import ssl
import sys
import uuid

import pika
from pika.exceptions import AMQPError

SENDER, RECEIVER, CA, OURS, THEIRS, STRANGER = sys.argv[1:7]
REFUSED = (AMQPError, ssl.SSLError, OSError)


def connect(address, version=None, certificate=None, external=False, trust=CA):
    host, port = address.rsplit(":", 1)
    context = ssl.create_default_context(cafile=trust)
    if version:
        context.minimum_version = context.maximum_version = version
    if certificate:
        context.load_cert_chain(certificate + ".pem", certificate + ".key")
    more = {"credentials": pika.credentials.ExternalCredentials()} if external else {}
    options = pika.SSLOptions(context, host)
    return pika.BlockingConnection(
        pika.ConnectionParameters(host, int(port), ssl_options=options, socket_timeout=30, connection_attempts=1, **more)
    )


def refused(what, **how):
    try:
        connect(SENDER, **how)
    except REFUSED as error:
        print("%s: refused, %s" % (what, type(error).__name__))
        return error
    sys.exit("%s: not refused" % what)


def carries(queue, sending, receiving, size):
    body = uuid.uuid4().bytes * (size // 16)
    channel = sending.channel()
    channel.confirm_delivery()
    channel.basic_publish("", queue, body, mandatory=True)
    method, _, got = receiving.channel().basic_get(queue, auto_ack=True)
    if got != body:
        sys.exit("%d bytes: something else came" % size)


def main():
    queue = "tls-" + uuid.uuid4().hex
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for certificate, external in ((None, False), (THEIRS, False), (OURS, True)):
            sending = connect(SENDER, version, certificate, external)
            receiving = connect(RECEIVER, version, certificate, external)
            receiving.channel().queue_declare(queue, durable=True)
            for size in (16, 100_000, 5_000_000):
                carries(queue, sending, receiving, size)
            sending.close()
            receiving.close()
            print("%s, certificate: %s, EXTERNAL: %s" % (version.name, bool(certificate), external))
    cleaner = connect(SENDER)
    cleaner.channel().queue_delete(queue)
    cleaner.close()

    refused("TLS 1.1", version=ssl.TLSVersion.TLSv1_1)
    refused("a node whose authority we do not know", trust=STRANGER + ".pem")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        refused("a certificate of another authority", version=version, certificate=STRANGER)
    refused("EXTERNAL without a certificate", external=True)
    error = refused("EXTERNAL as somebody who is no user", certificate=THEIRS, external=True)
    if not isinstance(error, pika.exceptions.ProbableAuthenticationError):
        sys.exit("not as a refused login: %r" % error)


main()
