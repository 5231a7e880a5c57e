//! What a camera adds to a picture: exposure and noise. Depth and cameras stay exact.

use crate::{geometry::Mat4, rng::Stream};

/// How pictures are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sensor {
    /// Deviation of the noise of every value of a pixel, where white is one.
    pub noise: f64,
    /// The brightness of a view is multiplied by two to the power of something within plus or minus this.
    pub exposure: f64,
    /// Of both.
    pub seed: u64,
}

impl Sensor {
    /// Without noise, all views equally bright.
    pub const IDEAL: Self = Self { noise: 0.0, exposure: 0.0, seed: 0 };

    /// What it does to the view from there.
    pub(super) fn shot(&self, extrinsic: &Mat4) -> Shot {
        // A view is known by where it is taken from, not by its place among others.
        let words: Vec<u64> = [self.seed].into_iter().chain(extrinsic.iter().flatten().map(|v| v.to_bits())).collect();
        let mut stream = Stream::new(&words);
        let gain = libm::exp2(self.exposure * stream.uniform(-1.0, 1.0));
        Shot { stream, gain, noise: self.noise }
    }
}

/// A picture being taken.
pub(super) struct Shot {
    stream: Stream,
    gain: f64,
    noise: f64,
}

impl Shot {
    /// The colour that comes out at a pixel.
    #[inline]
    pub(super) fn expose(&self, colour: [f64; 3], pixel: usize) -> [f64; 3] {
        if self.noise == 0.0 {
            return colour.map(|c| c * self.gain);
        }
        let noise = |c: usize| {
            // Four uniform numbers have a variance of a third of one.
            let bits = self.stream.bits_at(3 * pixel as u64 + c as u64 + 1);
            let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
            self.noise * 3f64.sqrt() * ((sum as f64 + 2.0) / 65_536.0 - 2.0)
        };
        std::array::from_fn(|c| colour[c] * self.gain + noise(c))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::IDENTITY;

    #[test]
    fn the_ideal_sensor_changes_nothing() {
        assert_eq!(Sensor::IDEAL.shot(&IDENTITY).expose([0.1, 0.5, 1.5], 9), [0.1, 0.5, 1.5]);
    }

    #[test]
    fn noise_has_its_deviation_and_no_mean() {
        let sensor = Sensor { noise: 0.02, exposure: 0.0, seed: 4 };
        let shot = sensor.shot(&IDENTITY);
        let values: Vec<f64> = (0..20_000).flat_map(|i| shot.expose([0.5; 3], i)).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((mean - 0.5).abs() < 5e-4 && (variance.sqrt() / 0.02 - 1.0).abs() < 0.02, "{mean} {variance}");
        assert_eq!(sensor.shot(&IDENTITY).expose([0.5; 3], 7), shot.expose([0.5; 3], 7));
    }
}
