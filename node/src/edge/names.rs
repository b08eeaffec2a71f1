//! Names: what is reserved, and names made by the server.

use super::access::Kind;
use crate::model::catalog::{Name, Refusal};
use crate::model::step::REPLY_TO;
use rand::Rng;
use std::sync::Arc;

/// Alphabet of base64url: what RabbitMQ's generated names are made of.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const RANDOM_CHARS: usize = 22;

/// `amq.gen-` and 22 random characters (132 bits).
pub(super) fn generate() -> Arc<str> {
    let mut rng = rand::rng();
    let random: String = (0..RANDOM_CHARS).map(|_| char::from(ALPHABET[rng.random_range(0..64usize)])).collect();
    format!("amq.gen-{random}").into()
}

/// Names with this prefix are the broker's; refused when something new would be made.
pub(super) fn check_not_reserved(kind: Kind, name: &str) -> Result<(), Refusal> {
    if !name.starts_with("amq.") {
        return Ok(());
    }
    Err(Refusal::Access(format!("{} name '{name}' contains reserved prefix 'amq.*'", kind.text())))
}

/// The default exchange cannot be declared, deleted, bound or unbound.
/// Bindings have no queue to lead to where answers go straight to a client.
pub(super) fn check_not_address(queue: &str) -> Result<(), Refusal> {
    match queue.strip_prefix(REPLY_TO) {
        Some(rest) if rest.starts_with('.') => {
            Err(Refusal::Access("cannot bind or unbind to a volatile (direct reply-to) queue".to_string()))
        }
        Some(_) | None => Ok(()),
    }
}

pub(super) fn check_not_default(exchange: &str) -> Result<(), Refusal> {
    if exchange.is_empty() {
        return Err(Refusal::Access("operation not permitted on the default exchange".to_string()));
    }
    Ok(())
}

/// 404 for a thing of that name.
pub(super) fn not_found(kind: Kind, name: &Name) -> Refusal {
    Refusal::NotFound { kind: kind.text().to_string(), name: name.name.to_string(), vhost: name.vhost.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_differ_and_are_safe() {
        let (a, b) = (generate(), generate());
        assert_ne!(a, b);
        assert_eq!(a.len(), "amq.gen-".len() + RANDOM_CHARS);
        assert!(a.bytes().all(|c| c.is_ascii_alphanumeric() || b".-_".contains(&c)));
    }

    #[test]
    fn reserved_names_are_refused_in_rabbitmqs_words() {
        let refused = check_not_reserved(Kind::Queue, "amq.x").expect_err("reserved");
        assert_eq!(refused.to_string(), "queue name 'amq.x' contains reserved prefix 'amq.*'");
        assert!(check_not_reserved(Kind::Queue, "amqx").is_ok());
    }
}
