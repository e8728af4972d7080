//! Responses that are one long list in one message, encoded row by row.
//!
//! A message of ten thousand rows costs its bytes when each row is encoded as it is read, and several times as much when
//! all of them are made first. So a server hands over bytes; what a client reads is rows.

use prost::bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{DecodeContext, WireType, message, skip_field};
use prost::{DecodeError, Message};

use crate::MAX_MESSAGE_BYTES;

/// The field that the rows are in.
const FIELD: u32 = 1;

/// A message whose only field, number 1, is repeated: images.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ImageRows<T> {
    /// The rows as messages; those that were encoded already are not among them.
    pub images: Vec<T>,
    encoded: Bytes,
}

impl<T> From<EncodedRows> for ImageRows<T> {
    fn from(rows: EncodedRows) -> Self {
        Self { images: Vec::new(), encoded: rows.0.freeze() }
    }
}

impl<T> From<Bytes> for ImageRows<T> {
    /// Sends again what [`EncodedRows`] made.
    fn from(encoded: Bytes) -> Self {
        Self { images: Vec::new(), encoded }
    }
}

impl<T: Message + Default> Message for ImageRows<T> {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.encoded);
        message::encode_repeated(FIELD, &self.images, buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            FIELD => message::merge_repeated(wire_type, &mut self.images, buf, ctx),
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        self.encoded.len() + message::encoded_len_repeated(FIELD, &self.images)
    }

    fn clear(&mut self) {
        self.images.clear();
        self.encoded.clear();
    }
}

/// Rows that are being encoded into one message.
#[derive(Debug, Default)]
pub struct EncodedRows(BytesMut);

impl EncodedRows {
    /// Adds a row.
    ///
    /// # Errors
    /// The bytes so far, if they are more than a message may have: no more are taken then.
    pub fn push(&mut self, row: &impl Message) -> Result<(), usize> {
        if self.0.len() <= MAX_MESSAGE_BYTES {
            message::encode(FIELD, row, &mut self.0);
        }
        if self.0.len() > MAX_MESSAGE_BYTES { Err(self.0.len()) } else { Ok(()) }
    }

    /// The bytes, as they can be kept and sent any number of times.
    pub fn freeze(self) -> Bytes {
        // What grew by doubling is larger than its content, and may be kept for long.
        Bytes::copy_from_slice(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::v1::ImageSpec;

    fn spec(image: &str) -> ImageSpec {
        ImageSpec { image: image.to_owned(), ..ImageSpec::default() }
    }

    #[test]
    fn rows_that_were_encoded_one_by_one_are_read_as_the_same_message() {
        let rows = [spec("a"), ImageSpec::default(), spec("b")];
        let mut encoded = EncodedRows::default();
        rows.iter().for_each(|row| encoded.push(row).unwrap());
        let sent = ImageRows::<ImageSpec>::from(encoded);
        let plain = ImageRows { images: rows.to_vec(), encoded: Bytes::new() };
        let bytes = sent.encode_to_vec();
        assert_eq!((bytes.len(), &bytes), (sent.encoded_len(), &plain.encode_to_vec()));
        assert_eq!(ImageRows::decode(&*bytes).unwrap(), plain);
        let unknown = [&bytes[..], &[0x12, 1, 0]].concat();
        assert_eq!(ImageRows::decode(&*unknown).unwrap(), plain, "a field that is not known is passed over");
        assert!(ImageRows::<ImageSpec>::decode(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn more_than_a_message_may_have_is_refused() {
        let mut encoded = EncodedRows::default();
        let row = spec(&"x".repeat(1 << 20));
        let pushed = (0..20).filter(|_| encoded.push(&row).is_ok()).count();
        assert_eq!(pushed, 15);
        assert!(encoded.0.len() < 18 << 20, "it does not grow for ever");
    }
}
