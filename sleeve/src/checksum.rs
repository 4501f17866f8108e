//! The Internet checksum (RFC 1071).

/// The sum of 16-bit words in ones' complement, not yet folded. An odd last octet
/// counts as the high half of a word.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    // Words of the machine's order add up to the sum in that order (RFC 1071
    // section 2), which `fold` turns round: no octet is moved in the loop.
    let mut total = 0_u64;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        // Nothing is long enough to wrap it. With a check for each word, which the profile
        // asks for, the compiler cannot add several at once.
        total = total.wrapping_add(u32::from_ne_bytes(*word).into());
    }
    let mut last = [0; 4];
    for (place, octet) in last.iter_mut().zip(rest) {
        *place = *octet;
    }
    total + u64::from(u32::from_ne_bytes(last))
}

/// The sum of 16 bits, in the order of the network.
pub(crate) fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    u16::from_be(total as u16)
}

/// The checksum of a whole header or message, where its own place has zeros.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

/// What the pseudo header of TCP and UDP adds up to, over IPv4 (RFC 9293 section 3.1)
/// or IPv6 (RFC 8200 section 8.1): the sums agree for lengths below 65,536.
pub(crate) fn pseudo(addresses: &[u8], protocol: u8, length: u16) -> u64 {
    let [high, low] = length.to_be_bytes();
    sum(addresses) + sum(&[0, protocol, high, low])
}

/// The checksum of TCP or UDP for such a sum. In UDP, 0 says that there is none; in
/// TCP both mean the same.
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
