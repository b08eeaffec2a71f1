//! SASL responses that more than one protocol reads.

/// User and password of a PLAIN response (RFC 4616): authorization id NUL user NUL password. The first must be empty, as in RabbitMQ:
/// nobody acts under another name here.
pub(super) fn plain(response: &[u8]) -> Option<(&str, &[u8])> {
    let mut parts = response.strip_prefix(&[0])?.split(|b| *b == 0);
    let (user, password) = (parts.next()?, parts.next()?);
    parts.next().is_none().then_some((std::str::from_utf8(user).ok()?, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_response_is_a_user_and_a_password_and_no_other_name() {
        assert_eq!(plain(b"\0guest\0secret"), Some(("guest", &b"secret"[..])));
        assert_eq!(plain(b"\0guest\0"), Some(("guest", &b""[..])));
        for bad in [&b""[..], b"no nul", b"\0guest", b"admin\0guest\0secret", b"\0guest\0sec\0ret", b"\0\xff\0secret"] {
            assert_eq!(plain(bad), None, "{bad:?}");
        }
    }
}
