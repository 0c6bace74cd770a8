package apitest_test

import (
	"testing"

	"sauh.dev/sauh/internal/api/apitest"
)

func TestTheFakeKeepsTheContract(t *testing.T) {
	apitest.Run(t, func(*testing.T) apitest.World {
		return apitest.World{Backend: apitest.New().Backend(), Own: 100, Other: 102, Free: 999, Storage: "nas", Member: "n2"}
	})
}
