//! Light: ambient, a distant sun and a near lamp, without shadows; and the sky.

use crate::geometry::{Vec3, dot, norm, sub};

/// The lights of a scene.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lights {
    /// Towards the sun, of length one.
    pub sun: Vec3,
    /// Where the lamp hangs.
    pub lamp: Vec3,
    /// Colour of all light.
    pub tint: [f64; 3],
    /// Brightness from everywhere.
    pub ambient: f64,
    /// Brightness of a surface that faces the sun.
    pub sun_power: f64,
    /// Brightness of a surface that faces the lamp from next to it.
    pub lamp_power: f64,
}

impl Lights {
    /// The colour of a surface point with that normal, lit (Lambert).
    #[inline]
    pub(super) fn shade(&self, colour: [f64; 3], p: Vec3, normal: Vec3) -> [f64; 3] {
        let to_lamp = sub(self.lamp, p);
        let distance = norm(to_lamp);
        let lamp = (dot(normal, to_lamp) / distance.max(1e-3)).max(0.0) / (1.0 + 0.03 * distance * distance);
        let light = self.ambient + self.sun_power * dot(normal, self.sun).max(0.0) + self.lamp_power * lamp;
        std::array::from_fn(|c| colour[c] * light * self.tint[c])
    }
}

/// The colour of the sky in a direction.
#[inline]
pub(super) fn sky(direction: Vec3) -> [f64; 3] {
    let up = direction[2] / norm(direction);
    [0.55 - 0.2 * up, 0.7 - 0.15 * up, 0.9 - 0.05 * up]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn light_adds_up_and_backs_stay_ambient() {
        let up = [0.0, 0.0, 1.0];
        let lights = Lights {
            sun: up,
            lamp: [0.0, 0.0, 2.0],
            tint: [1.0, 0.9, 1.1],
            ambient: 0.4,
            sun_power: 0.3,
            lamp_power: 0.2,
        };
        let lit = lights.shade([1.0, 0.5, 0.1], [0.0; 3], up);
        let light = 0.4 + 0.3 + 0.2 / (1.0 + 0.03 * 4.0);
        for (c, expect) in [light, 0.5 * light * 0.9, 0.1 * light * 1.1].into_iter().enumerate() {
            assert!((lit[c] - expect).abs() < 1e-12);
        }
        assert_eq!(lights.shade([1.0; 3], [0.0; 3], [0.0, 0.0, -1.0])[0], 0.4);
    }
}
