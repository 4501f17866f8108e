//! The Internet checksum (RFC 1071).

/// The sum of 16-bit words in ones' complement, not yet folded. An odd last octet
/// counts as the high half of a word.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    // Words are added in the machine's byte order and `fold` swaps the result (RFC 1071
    // section 2), so no octet is moved in the loop.
    let mut total = 0_u64;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        // No packet is long enough to overflow this. An overflow check per word, which the
        // profile asks for, keeps the compiler from vectorising the loop.
        total = total.wrapping_add(u32::from_ne_bytes(*word).into());
    }
    let mut last = [0; 4];
    for (slot, octet) in last.iter_mut().zip(rest) {
        *slot = *octet;
    }
    total + u64::from(u32::from_ne_bytes(last))
}

/// Folds a sum to 16 bits, in network byte order.
pub(crate) fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    u16::from_be(total as u16)
}

/// The checksum of a whole header or message whose checksum field is zero.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

/// The sum of the pseudo header of TCP or UDP over IPv4 (RFC 9293 section 3.1) or IPv6
/// (RFC 8200 section 8.1); the two are the same for lengths below 65,536.
pub(crate) fn pseudo(addresses: &[u8], protocol: u8, length: u16) -> u64 {
    let [high, low] = length.to_be_bytes();
    sum(addresses) + sum(&[0, protocol, high, low])
}

/// The checksum of TCP or UDP for such a sum. In UDP a zero field means "no checksum", so zero
/// is sent as all ones; in TCP both mean the same.
pub(crate) fn transport_checksum(total: u64) -> [u8; 2] {
    match !fold(total) {
        0 => [0xff; 2],
        checksum => checksum.to_be_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::segmenting;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071_adds_up() {
        let words = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&words)), 0xddf2);
    }

    proptest! {
        #[test]
        fn words_added_one_by_one_give_the_same(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            (segmenting::CHECKSUM.check)(&bytes);
        }
    }
}
