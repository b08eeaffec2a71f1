//! Every method of AMQP 0-9-1 with RabbitMQ's extensions (classes 10-60, 85, 90): one list, from which the enum and its codec come.
//! Publish, deliver, get-ok and return have their content beside them (`content`).

use super::primitive::{Long, Malformed, Reader, Short, Writer};
use crate::model::catalog::Table;
use bytes::{Buf, BufMut, Bytes, BytesMut};

macro_rules! methods {
    ($($class:literal $method:literal $text:literal $name:ident { $($field:ident: $type:ty),* })*) => {
        /// A method with its arguments, named as in the spec.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum Method {
            $($name { $($field: $type),* },)*
        }

        impl Method {
            /// Class and method id.
            pub fn id(&self) -> (u16, u16) {
                match self {
                    $(Method::$name { .. } => ($class, $method),)*
                }
            }

            /// As the spec writes it, e.g. `queue.declare-ok`.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Method::$name { .. } => $text,)*
                }
            }

            /// Reads the payload of a method frame. `Ok(None)`: no such method.
            pub fn decode(mut payload: Bytes) -> Result<Option<Method>, Malformed> {
                let class = payload.try_get_u16().map_err(|_| Malformed("method"))?;
                let method = payload.try_get_u16().map_err(|_| Malformed("method"))?;
                let mut reader = Reader::new(payload);
                let _ = &mut reader;
                Ok(Some(match (class, method) {
                    $(($class, $method) => Method::$name { $($field: reader.read()?),* },)*
                    _ => return Ok(None),
                }))
            }

            /// Appends the payload of a method frame.
            pub fn encode(&self, out: &mut BytesMut) {
                let (class, method) = self.id();
                out.put_u16(class);
                out.put_u16(method);
                let mut writer = Writer::new(out);
                let _ = &mut writer;
                match self {
                    $(Method::$name { $($field),* } => { $(writer.write($field);)* })*
                }
            }
        }
    };
}

methods! {
    10 10 "connection.start" ConnectionStart { version_major: u8, version_minor: u8, server_properties: Table, mechanisms: Long, locales: Long }
    10 11 "connection.start-ok" ConnectionStartOk { client_properties: Table, mechanism: Short, response: Long, locale: Short }
    10 20 "connection.secure" ConnectionSecure { challenge: Long }
    10 21 "connection.secure-ok" ConnectionSecureOk { response: Long }
    10 30 "connection.tune" ConnectionTune { channel_max: u16, frame_max: u32, heartbeat: u16 }
    10 31 "connection.tune-ok" ConnectionTuneOk { channel_max: u16, frame_max: u32, heartbeat: u16 }
    10 40 "connection.open" ConnectionOpen { virtual_host: Short, reserved_1: Short, reserved_2: bool }
    10 41 "connection.open-ok" ConnectionOpenOk { reserved_1: Short }
    10 50 "connection.close" ConnectionClose { reply_code: u16, reply_text: Short, class_id: u16, method_id: u16 }
    10 51 "connection.close-ok" ConnectionCloseOk {}
    10 60 "connection.blocked" ConnectionBlocked { reason: Short }
    10 61 "connection.unblocked" ConnectionUnblocked {}
    10 70 "connection.update-secret" ConnectionUpdateSecret { new_secret: Long, reason: Short }
    10 71 "connection.update-secret-ok" ConnectionUpdateSecretOk {}
    20 10 "channel.open" ChannelOpen { reserved_1: Short }
    20 11 "channel.open-ok" ChannelOpenOk { reserved_1: Long }
    20 20 "channel.flow" ChannelFlow { active: bool }
    20 21 "channel.flow-ok" ChannelFlowOk { active: bool }
    20 40 "channel.close" ChannelClose { reply_code: u16, reply_text: Short, class_id: u16, method_id: u16 }
    20 41 "channel.close-ok" ChannelCloseOk {}
    30 10 "access.request" AccessRequest { realm: Short, exclusive: bool, passive: bool, active: bool, write: bool, read: bool }
    30 11 "access.request-ok" AccessRequestOk { ticket: u16 }
    40 10 "exchange.declare" ExchangeDeclare { ticket: u16, exchange: Short, kind: Short, passive: bool, durable: bool, auto_delete: bool, internal: bool, nowait: bool, arguments: Table }
    40 11 "exchange.declare-ok" ExchangeDeclareOk {}
    40 20 "exchange.delete" ExchangeDelete { ticket: u16, exchange: Short, if_unused: bool, nowait: bool }
    40 21 "exchange.delete-ok" ExchangeDeleteOk {}
    40 30 "exchange.bind" ExchangeBind { ticket: u16, destination: Short, source: Short, routing_key: Short, nowait: bool, arguments: Table }
    40 31 "exchange.bind-ok" ExchangeBindOk {}
    40 40 "exchange.unbind" ExchangeUnbind { ticket: u16, destination: Short, source: Short, routing_key: Short, nowait: bool, arguments: Table }
    40 51 "exchange.unbind-ok" ExchangeUnbindOk {}
    50 10 "queue.declare" QueueDeclare { ticket: u16, queue: Short, passive: bool, durable: bool, exclusive: bool, auto_delete: bool, nowait: bool, arguments: Table }
    50 11 "queue.declare-ok" QueueDeclareOk { queue: Short, message_count: u32, consumer_count: u32 }
    50 20 "queue.bind" QueueBind { ticket: u16, queue: Short, exchange: Short, routing_key: Short, nowait: bool, arguments: Table }
    50 21 "queue.bind-ok" QueueBindOk {}
    50 30 "queue.purge" QueuePurge { ticket: u16, queue: Short, nowait: bool }
    50 31 "queue.purge-ok" QueuePurgeOk { message_count: u32 }
    50 40 "queue.delete" QueueDelete { ticket: u16, queue: Short, if_unused: bool, if_empty: bool, nowait: bool }
    50 41 "queue.delete-ok" QueueDeleteOk { message_count: u32 }
    50 50 "queue.unbind" QueueUnbind { ticket: u16, queue: Short, exchange: Short, routing_key: Short, arguments: Table }
    50 51 "queue.unbind-ok" QueueUnbindOk {}
    60 10 "basic.qos" BasicQos { prefetch_size: u32, prefetch_count: u16, global: bool }
    60 11 "basic.qos-ok" BasicQosOk {}
    60 20 "basic.consume" BasicConsume { ticket: u16, queue: Short, consumer_tag: Short, no_local: bool, no_ack: bool, exclusive: bool, nowait: bool, arguments: Table }
    60 21 "basic.consume-ok" BasicConsumeOk { consumer_tag: Short }
    60 30 "basic.cancel" BasicCancel { consumer_tag: Short, nowait: bool }
    60 31 "basic.cancel-ok" BasicCancelOk { consumer_tag: Short }
    60 40 "basic.publish" BasicPublish { ticket: u16, exchange: Short, routing_key: Short, mandatory: bool, immediate: bool }
    60 50 "basic.return" BasicReturn { reply_code: u16, reply_text: Short, exchange: Short, routing_key: Short }
    60 60 "basic.deliver" BasicDeliver { consumer_tag: Short, delivery_tag: u64, redelivered: bool, exchange: Short, routing_key: Short }
    60 70 "basic.get" BasicGet { ticket: u16, queue: Short, no_ack: bool }
    60 71 "basic.get-ok" BasicGetOk { delivery_tag: u64, redelivered: bool, exchange: Short, routing_key: Short, message_count: u32 }
    60 72 "basic.get-empty" BasicGetEmpty { cluster_id: Short }
    60 80 "basic.ack" BasicAck { delivery_tag: u64, multiple: bool }
    60 90 "basic.reject" BasicReject { delivery_tag: u64, requeue: bool }
    60 100 "basic.recover-async" BasicRecoverAsync { requeue: bool }
    60 110 "basic.recover" BasicRecover { requeue: bool }
    60 111 "basic.recover-ok" BasicRecoverOk {}
    60 120 "basic.nack" BasicNack { delivery_tag: u64, multiple: bool, requeue: bool }
    85 10 "confirm.select" ConfirmSelect { nowait: bool }
    85 11 "confirm.select-ok" ConfirmSelectOk {}
    90 10 "tx.select" TxSelect {}
    90 11 "tx.select-ok" TxSelectOk {}
    90 20 "tx.commit" TxCommit {}
    90 21 "tx.commit-ok" TxCommitOk {}
    90 30 "tx.rollback" TxRollback {}
    90 31 "tx.rollback-ok" TxRollbackOk {}
}
