"""What no SDK sends, seeded: changed documents, headers, targets and properties, several requests in one piece, requests that end in
the middle, bodies that are too large.

garbage.py HOST PORT SEED REQUESTS
Topics `fuzz` and `fuzzed`. Every request that is whole is answered once, in its order, with a status of the protocol and a document that its SDK can
read; whatever was answered with 201 comes to a consumer as it was sent; nothing that was refused does.
"""
import base64
import hashlib
import hmac
import random
import socket
import sys
import time
import xml.dom.minidom
from xml.sax.saxutils import escape

HOST, PORT = sys.argv[1], int(sys.argv[2])
SEED, REQUESTS = int(sys.argv[3]), int(sys.argv[4])
GROUP = "GID_fuzz"
XML = "text/xml;charset=UTF-8"
# Of the protocol, and what HTTP itself says of requests that are none (411 to 414, 431, 505).
STATUSES = {200, 201, 204, 400, 403, 404, 405, 408, 411, 413, 414, 431, 503, 505}
# Those of HTTP have no document.
BARE = {400, 411, 413, 414, 431, 505}
CODES = {"InvalidArgument", "MalformedXML", "MissingReceiptHandle", "InvalidRequestURL", "InvalidQueryString", "MissingAuthorizationHeader",
         "MissingDateHeader", "InvalidAuthorizationHeader", "InvalidDateHeader", "AccessDenied", "InvalidAccessKeyId",
         "SignatureDoesNotMatch", "MessageNotExist", "SubscriptionNotExist", "TopicNotExist", "MethodNotAllowed", "TimeExpired", "ServiceUnavailable"}
TEXT = "abcXYZ019 \t\n<>&\"':|;=%/\\]]>äß中\U0001f600\x01\x7f\u2028"

chance = random.Random(SEED)


def text(most):
    return "".join(chance.choice(TEXT) for _ in range(chance.randint(0, most)))


def signed(method, target, document=b"", extra=(), secret=b"guest", date=None):
    """A request as bytes; `extra`: more headers, not signed."""
    date = date or time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    kind = XML if document else ""
    what = "%s\n\n%s\n%s\nx-mq-version:2015-06-06\n%s" % (method, kind, date, target)
    signature = base64.b64encode(hmac.new(secret, what.encode("utf-8", "surrogateescape"), hashlib.sha1).digest()).decode()
    head = ["%s %s HTTP/1.1" % (method, target), "Host: x", "Content-Length: %d" % len(document), "x-mq-version: 2015-06-06", "Date: " + date,
            "Authorization: MQ guest:" + signature] + (["Content-Type: " + kind] if kind else []) + list(extra)
    return "\r\n".join(head).encode("utf-8") + b"\r\n\r\n" + document


class Line:
    """A connection, and the answers on it."""

    def __init__(self):
        self.socket = socket.create_connection((HOST, PORT), timeout=60)
        self.left = b""

    def send(self, data):
        try:
            self.socket.sendall(data)
        except OSError:
            pass  # it was answered and closed before it was through

    def more(self):
        try:
            piece = self.socket.recv(65536)
        except ConnectionResetError:
            piece = b""
        self.left += piece
        return bool(piece)

    def answer(self):
        """Status and document of the next answer; None: the connection is closed."""
        while b"\r\n\r\n" not in self.left:
            if not self.more():
                assert not self.left, "half an answer: %r" % self.left
                return None
        head, self.left = self.left.split(b"\r\n\r\n", 1)
        lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        length = int(headers.get("content-length", 0))
        while len(self.left) < length:
            assert self.more(), "half a document"
        document, self.left = self.left[:length], self.left[length:]
        status = int(lines[0].split(" ")[1])
        judge(status, headers, document)
        return status, document

    def close(self):
        self.socket.close()


def judge(status, headers, document):
    assert status in STATUSES, (status, document)
    if not document:
        assert status == 204 or status in BARE, (status, headers)
        return
    assert "x-mq-request-id" in headers, headers
    root = xml.dom.minidom.parseString(document).documentElement
    if status >= 400 and root.tagName == "Error":
        found = {child.tagName: child.firstChild.data if child.firstChild else "" for child in root.childNodes}
        assert {"Code", "Message", "RequestId", "HostId"} <= set(found), found
        assert found["Code"] in CODES and found["RequestId"] == headers["x-mq-request-id"], found
    elif status >= 400:
        assert root.tagName == "Errors", document
        for error in root.childNodes:
            assert len(error.childNodes) == 3 and all(child.firstChild for child in error.childNodes), document
    else:
        assert root.tagName == ("Message" if status == 201 else "Messages"), document


def document(body, tag, properties):
    """A publish as a careful client writes it."""
    inner = "<MessageBody>%s</MessageBody><Properties>%s</Properties><MessageTag>%s</MessageTag>" % tuple(map(escape, (body, properties, tag)))
    return ('<?xml version="1.0" encoding="utf-8"?><Message xmlns="http://mq.aliyuncs.com/doc/v1/">%s</Message>' % inner).encode()


def changed(data):
    """Some bytes are gone, there twice, others, or somewhere else."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(data) or 1), chance.randint(1, 20)
        kind = chance.randrange(5)
        if kind == 0:
            del data[at:at + length]
        elif kind == 1:
            data[at:at] = data[at:at + length]
        elif kind == 2:
            data[at:at + 1] = bytes([chance.randrange(256)])
        elif kind == 3:
            data[at:at] = chance.choice([b"<a>", b"</a>", b"&#0;", b"&x;", b"<![CDATA[", b"]]>", b"<!DOCTYPE a [<!ENTITY x 'y'>]>", b"<!--", b"\xff", b"<?x"])
        else:
            piece = data[at:at + length]
            del data[at:at + length]
            at = chance.randrange(len(data) + 1)
            data[at:at] = piece
    return bytes(data)


def fuzzed():
    """A publish that is changed: what the parser makes of it is its own business, as long as it answers."""
    clean = lambda most: "".join(c for c in text(most) if c >= " ")
    return signed("POST", "/topics/fuzzed/messages", changed(document("x" + clean(40), clean(5), clean(30))))


def target():
    words = ["consumer=GID_another", "numOfMessages=%d" % chance.randint(-1, 20), "waitseconds=0", "trans=" + chance.choice(["", "order", "x"]), "tag=%zz%7C",
             "ns=", "ns=%2F", "x=y", "=", "consumer", "numOfMessages=" + "9" * 30, "&&", "consumer=" + "g" * 200]
    path = chance.choice(["/topics/fuzz/messages", "/topics//messages", "/topics/none/messages", "/topics/f%75zz/messages", "/", "/topics/fuzz/messages/x"])
    return path + "?" + "&".join(chance.sample(words, chance.randint(0, 5)))


def awkward():
    """A request that is whole, and all of whose headers say what they should; not always what it asks for."""
    kind = chance.randrange(7)
    good = document(text(40) or "x", text(5), text(30))
    if kind == 0:
        return signed("POST", "/topics/none/messages", changed(good))
    if kind == 1:
        return signed(chance.choice(["GET", "PUT", "OPTIONS", "PATCH"]), target())
    if kind == 2:
        handles = "".join("<ReceiptHandle>%s</ReceiptHandle>" % escape("".join(c for c in text(90) if c >= " ")) for _ in range(chance.randint(0, 18)))
        return signed("DELETE", "/topics/fuzz/messages?consumer=" + GROUP, ("<ReceiptHandles>%s</ReceiptHandles>" % handles).encode())
    if kind == 3:
        return signed("DELETE", "/topics/fuzz/messages?consumer=%s&trans=%s" % (GROUP, chance.choice(["commit", "rollback", "x"])), changed(good))
    if kind == 4:
        return signed("GET", target(), secret=b"wrong")
    if kind == 5:
        dates = ["", "now", "Thu, 07 Mar 2019 18:49:58 GMT", "Thu, 99 Mar 2019 18:49:58 GMT", "x" * 4000]
        return signed("GET", "/topics/fuzz/messages?consumer=g&numOfMessages=1", date=chance.choice(dates))
    extra = ["x-mq-%d: %s" % (n, "v" * chance.randint(0, 300)) for n in range(chance.randint(1, 20))]
    return signed("GET", "/topics/fuzz/messages?consumer=g&numOfMessages=1", extra=extra)


def normal(body):
    """As a parser of XML delivers it."""
    return body.replace("\r\n", "\n").replace("\r", "\n")


def several_at_once(sent):
    """Requests in one piece, some of which publish: as many answers, in order."""
    line, expected, data = Line(), [], b""
    for _ in range(chance.randint(1, 8)):
        if chance.random() < 0.5:
            body, tag = text(60), text(8)
            properties = "".join("%s:%s|" % (text(6), text(6)) for _ in range(chance.randint(0, 4)))
            data += signed("POST", "/topics/fuzz/messages", document(body, tag, properties))
            expected.append(body)
        elif chance.random() < 0.5:
            data += fuzzed()
            expected.append(fuzzed)
        else:
            data += awkward()
            expected.append(None)
    cut = chance.randrange(len(data))
    line.send(data[:cut])
    line.send(data[cut:])
    for body in expected:
        status, answer = line.answer()
        if body is fuzzed:
            assert status == 201 or b"<Code>InvalidArgument</Code>" in answer or b"<Code>MalformedXML</Code>" in answer, answer
            sent.fuzzed[status] += 1
        elif body is None:
            assert status not in (201, 204), (status, answer)
        elif status == 201:
            sent.append(normal(body))
        else:
            is_text = body and all(c >= " " or c in "\t\n\r" for c in body)
            assert status == 400, (status, answer)
            sent.refused += bool(is_text)
    line.close()


class Sent(list):
    """Bodies that were answered with 201, how many of text were refused for their tags or properties, what became of changed documents."""
    refused = 0
    fuzzed = {201: 0, 400: 0}


def not_whole():
    """It ends in the middle, or is no request at all. There is one answer at most."""
    data = chance.choice([awkward, fuzzed, lambda: changed(awkward()), lambda: chance.randbytes(chance.randint(1, 200))])()
    line = Line()
    line.send(data[:chance.randint(0, len(data) - 1)])
    line.socket.shutdown(socket.SHUT_WR)
    answers = 0
    try:
        while line.answer():
            answers += 1
    except UnicodeDecodeError:
        raise AssertionError("an answer that is none to %r" % data)
    assert answers <= 2, answers
    line.close()


def too_large():
    """A body of 40 MiB, announced or in chunks: all of it is read before it is refused, and the connection goes on."""
    line, piece = Line(), b"x" * (1 << 20)
    head = signed("POST", "/topics/fuzz/messages")
    if chance.random() < 0.5:
        line.send(head.replace(b"Content-Length: 0", b"Content-Length: %d" % (40 << 20)))
        for _ in range(40):
            line.send(piece)
    else:
        line.send(head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        for _ in range(40):
            line.send(b"100000\r\n" + piece + b"\r\n")
        line.send(b"0\r\n\r\n")
    answer = line.answer()
    assert answer and answer[0] == 400 and b"<Code>InvalidArgument</Code>" in answer[1], answer
    line.send(signed("GET", "/topics/none/messages?consumer=g&numOfMessages=1"))
    answer = line.answer()
    assert answer and b"<Code>TopicNotExist</Code>" in answer[1], answer
    line.close()


def consumed(count):
    """All that comes, acknowledged."""
    line, got, until = Line(), [], time.time() + 120
    while len(got) < count and time.time() < until:
        line.send(signed("GET", "/topics/fuzz/messages?consumer=%s&numOfMessages=16&waitseconds=2" % GROUP))
        status, answer = line.answer()
        if status != 200:
            continue
        root = xml.dom.minidom.parseString(answer).documentElement
        first = lambda message, name: "".join(child.data for child in message.getElementsByTagName(name)[0].childNodes)
        handles = ""
        for message in root.childNodes:
            got.append(first(message, "MessageBody"))
            handles += "<ReceiptHandle>%s</ReceiptHandle>" % first(message, "ReceiptHandle")
        line.send(signed("DELETE", "/topics/fuzz/messages?consumer=" + GROUP, ("<ReceiptHandles>%s</ReceiptHandles>" % handles).encode()))
        status, answer = line.answer()
        assert status == 204, answer
    line.send(signed("GET", "/topics/fuzz/messages?consumer=%s&numOfMessages=16&waitseconds=1" % GROUP))
    status, answer = line.answer()
    assert status == 404, "more than was sent: %r" % answer
    return got


line = Line()
line.send(signed("GET", "/topics/fuzz/messages?consumer=%s&numOfMessages=1" % GROUP))
assert line.answer()[0] == 404
line.close()
sent = Sent()
for n in range(REQUESTS):
    [several_at_once, lambda _: not_whole()][n % 3 == 2](sent)
    if n % 200 == 50:
        too_large()
got = consumed(len(sent))
assert sorted(got) == sorted(sent), (set(got) ^ set(sent), len(got), len(sent))
print("seed %d: %d published of which all came, %d refused, changed documents %r" % (SEED, len(sent), sent.refused, sent.fuzzed))
assert min(sent.fuzzed.values()) > 0, "the parser was hardly reached"
assert len(sent) > REQUESTS / 4, "too little of it was published to prove anything"
